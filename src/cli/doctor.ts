/** `pagoda doctor`: looks at everything that has to be right on this machine, and says what to do where it is not. */
import {joinPath, systemDisk} from '#runtime/disk.ts';
import {requestJson} from '#runtime/http.ts';
import {freeBytes, isPrivate, reachableByAll} from '#runtime/permissions.ts';
import {environment, exitProcess, lookUpUser, printLine, runProcess, runsAsRoot} from '#runtime/process.ts';
import {nodeVersion} from '#runtime/program.ts';
import {roleStates} from '#cli/commands.ts';
import {type InternalClient, type PageserverPlace, connectInternally} from '#cli/internal-client.ts';
import {type Layout, packageRoot} from '#cli/layout.ts';
import {readSupervisor} from '#cli/up.ts';

export const doctorHelp = `  pagoda doctor          checks this machine and what runs, and says what to do where something is wrong
`;

interface Finding {
  readonly what: string;
  readonly ok: boolean;
  readonly seen: string;
  /** What to do when it is not ok. */
  readonly remedy?: string;
  /** Not ok, but nothing depends on it. */
  readonly comfort?: boolean;
}

const postgresMajor = 15;
const freeBytesMin = 2 * 1024 ** 3;

export async function doctor(layout: Layout): Promise<void> {
  const findings = [...(await machine(layout)), ...(await running(layout))];
  for (const {what, ok, seen, remedy, comfort} of findings) {
    printLine(`${ok ? 'ok     ' : comfort === true ? 'note   ' : 'WRONG  '} ${what}: ${seen}`);
    if (!ok && remedy !== undefined) printLine(`         ${remedy}`);
  }
  const wrong = findings.filter(({ok, comfort}) => !ok && comfort !== true).length;
  printLine(wrong === 0 ? 'nothing is wrong' : `${wrong} to mend`);
  if (wrong > 0) exitProcess(1);
}

async function machine(layout: Layout): Promise<Finding[]> {
  const binDir = environment['PAGODA_PG_BIN'] ?? `/usr/lib/postgresql/${postgresMajor}/bin`;
  const postgres = joinPath(binDir, 'postgres');
  const version = systemDisk.exists(postgres)
    ? (await runProcess({command: postgres, args: ['--version']})).stdout.trim()
    : 'missing';
  const number = /(\d+\.\d+)/.exec(version)?.[1] ?? '';
  const library = [joinPath(packageRoot, '.cache'), '/var/cache/pagoda']
    .map((cache) => joinPath(cache, 'extension', number, 'pagoda.so'))
    .find((path) => systemDisk.exists(path));
  const owner = runsAsRoot ? 'postgres' : (environment['USER'] ?? '');
  const free = freeBytes(systemDisk.exists(layout.data) ? layout.data : '/');
  const names = await runProcess({command: 'getent', args: ['hosts', 'a-name-of-pagoda.localhost']});
  return [
    {
      what: 'Node',
      ok: Number(nodeVersion.split('.')[0]) >= 24,
      seen: nodeVersion,
      remedy: 'run through npm or scripts/node: the project brings Node 24',
    },
    {
      what: 'PostgreSQL',
      ok: number.startsWith(`${postgresMajor}.`),
      seen: `${version} (${postgres})`,
      remedy: `apt-get install postgresql-${postgresMajor} postgresql-server-dev-${postgresMajor}, or set PAGODA_PG_BIN to the bin directory of a PostgreSQL ${postgresMajor}`,
    },
    {
      what: 'extension',
      ok: library !== undefined,
      seen: library ?? `not built for PostgreSQL ${number}`,
      remedy: '`pagoda up` builds it; it needs make, gcc and the server headers',
    },
    {what: 'user of Postgres', ...userFinding(owner)},
    {
      what: 'data directory',
      ok: !runsAsRoot || reachableByAll(layout.data),
      seen: layout.data,
      remedy: `Postgres runs as ${owner} and cannot pass: open the directories above (chmod o+x), or choose another --data`,
    },
    {
      what: 'room on disk',
      ok: free >= freeBytesMin,
      seen: `${(free / 1e9).toFixed(1)} GB free`,
      remedy: 'safekeepers refuse to acknowledge on a full disk, and go on when there is room again',
    },
    {
      what: 'names *.localhost',
      ok: names.code === 0,
      comfort: true,
      seen: names.code === 0 ? 'resolve' : 'do not resolve',
      remedy: 'connection strings of the neon CLI need it: apt-get install libnss-myhostname',
    },
    ...secrets(layout),
  ];
}

function userFinding(owner: string): {ok: boolean; seen: string; remedy: string} {
  try {
    return {ok: true, seen: `${owner} (uid ${lookUpUser(owner).uid})`, remedy: ''};
  } catch (error) {
    return {
      ok: false,
      seen: (error as Error).message,
      remedy: "Debian's package postgresql-common makes the user postgres",
    };
  }
}

/** Keys that others can read are no secrets. */
function secrets(layout: Layout): Finding[] {
  if (!systemDisk.exists(layout.keys)) return [];
  const open = systemDisk
    .list(layout.keys)
    .filter((name) => !name.endsWith('.pub.pem'))
    .map((name) => joinPath(layout.keys, name))
    .filter((path) => !isPrivate(path));
  return [
    {
      what: 'keys',
      ok: open.length === 0,
      seen: open.length === 0 ? `${layout.keys}, closed to others` : `open to others: ${open.join(', ')}`,
      remedy: `chmod 600 ${open.join(' ')}; who could read them may have them: think of making new ones`,
    },
  ];
}

async function running(layout: Layout): Promise<Finding[]> {
  const notes = readSupervisor(layout);
  if (notes === undefined)
    return [
      {
        what: 'installation',
        ok: false,
        comfort: true,
        seen: `nothing runs on ${layout.data}`,
        remedy: 'start it: pagoda up',
      },
    ];
  const roles: Finding[] = roleStates(layout).map(({name, pid, running: alive}) => ({
    what: name,
    ok: alive,
    seen: alive ? `runs, pid ${pid}` : 'does not run',
    remedy: `pagoda logs ${name}`,
  }));
  return [...roles, await api(notes.ports.api), ...(await storage(layout))];
}

async function api(port: number): Promise<Finding> {
  const url = `http://127.0.0.1:${port}/api/v2/projects`;
  const answered = await requestJson({method: 'GET', url, timeoutMs: 5000}).then(
    ({status}) => status,
    (error: Error) => error.message,
  );
  // Without a key the right answer is 401.
  return {what: 'API', ok: answered === 401, seen: `${url} answers ${answered}`, remedy: 'pagoda logs control'};
}

/** Does every branch's WAL reach its pageserver? */
async function storage(layout: Layout): Promise<Finding[]> {
  try {
    const client = await connectInternally(layout);
    const nodes = await client.pageservers();
    const found = await Promise.all(
      nodes.map((node) => pageserver(client, node, nodes.length === 1 ? 'pageserver' : `pageserver ${node.nodeId}`)),
    );
    return found.flat();
  } catch (error) {
    return [{what: 'pageservers', ok: false, seen: (error as Error).message, remedy: 'pagoda logs control'}];
  }
}

async function pageserver(client: InternalClient, node: PageserverPlace, what: string): Promise<Finding[]> {
  const remedy = `look at its log (on this machine: pagoda logs pageserver${node.nodeId === 1 ? '' : `-${node.nodeId}`})`;
  if (!node.answers) return [{what, ok: false, seen: `${node.host}:${node.httpPort} does not answer`, remedy}];
  try {
    const {tenants} = (await client.ask(node, 'GET', '/v1/tenants')) as {tenants: {tenantId: string}[]};
    const findings: Finding[] = [];
    let timelines = 0;
    for (const {tenantId} of tenants) {
      const answer = (await client.ask(node, 'GET', `/v1/tenant/${tenantId}`)) as {
        timelines: {timelineId: string; ingestError?: string; walError?: string}[];
      };
      timelines += answer.timelines.length;
      for (const {timelineId, ingestError, walError} of answer.timelines) {
        const seen = ingestError ?? walError;
        if (seen === undefined) continue;
        findings.push({
          what: `tenant ${tenantId}, timeline ${timelineId}`,
          ok: false,
          seen,
          remedy:
            ingestError === undefined
              ? 'it is asked for again all the time: look at the safekeepers, and whether this pageserver is still the one that the tenant is attached to'
              : 'docs/operating.md says what stopped it and what to do: look for pagoda_ingest_stopped_timelines',
        });
      }
    }
    return [{what, ok: true, seen: `${tenants.length} tenants, ${timelines} timelines`}, ...findings];
  } catch (error) {
    return [{what, ok: false, seen: (error as Error).message, remedy}];
  }
}
