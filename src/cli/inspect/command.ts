/** `pagoda scrub | verify | sizes | layers`: what storage holds, whether it is whole, and why it is kept. */
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {requestJson, requestStream} from '#runtime/http.ts';
import {exitProcess, printLine} from '#runtime/process.ts';
import {TokenIssuer} from '#wire/auth.ts';
import {type Arguments, UsageError} from '#cli/arguments.ts';
import {internalPorts, type Layout} from '#cli/layout.ts';
import {parseObjectStore} from '#cli/object-store-choice.ts';
import {readSupervisor} from '#cli/up.ts';

export const inspectOptions = {
  '--branch': 'value',
  '--at': 'value',
  '--copy': 'value',
  '--out': 'value',
  '--tables': 'flag',
  '--json': 'flag',
} as const;

export const inspectHelp = `  pagoda verify [--branch B] [--at LSN|TIME]
                         rebuild every page of a branch and prove that it can be read
  pagoda scrub [--copy STORE]
                         read every object of the store: missing, damaged, orphaned; with a copy of the store
                         (folder:/path or s3://…) damaged and missing ones are put back
  pagoda sizes [--branch B] [--tables]
                         what branches and tables occupy, and what keeps it
  pagoda layers [--branch B] --out FILE.svg
                         a picture of a branch's layers
`;

interface Place {
  readonly branchId: string;
  readonly name: string;
  readonly projectId: string;
  readonly tenantId: string;
  readonly timelineId: string;
  readonly isDefault: boolean;
}

type Json = Readonly<Record<string, unknown>>;
/** A scan of a large branch takes as long as it takes. */
const longMsMax = 24 * 3_600_000;

export async function inspect(command: string, args: Arguments, layout: Layout): Promise<void> {
  if (args.words.length > 0) throw new UsageError(`${command} takes options only; see \`pagoda help\``);
  const client = await connect(layout);
  switch (command) {
    case 'verify':
      return verify(client, args);
    case 'scrub':
      return scrub(client, args);
    case 'sizes':
      return sizes(client, args);
    default:
      return layers(client, args);
  }
}

interface Client {
  readonly places: (branch: string | undefined) => Promise<Place[]>;
  readonly ask: (method: string, path: string, body?: unknown) => Promise<Json>;
  readonly download: (path: string) => Promise<Buffer>;
}

async function connect(layout: Layout): Promise<Client> {
  const notes = readSupervisor(layout);
  if (notes === undefined) throw new UsageError(`nothing runs on ${layout.data}. Start it with \`pagoda up\``);
  const issuer = await TokenIssuer.load(layout.keys, 'control', systemClock);
  const ports = internalPorts(notes.ports.internal);
  const call = async (aud: 'control' | 'pageserver', method: string, path: string, body?: unknown): Promise<Json> => {
    const port = aud === 'control' ? ports.control : ports.pageserverHttp;
    const {status, json} = await requestJson({
      method,
      url: `http://127.0.0.1:${port}${path}`,
      token: await issuer.sign({aud, scope: 'node'}),
      ...(body === undefined ? {} : {body}),
      timeoutMs: longMsMax,
    });
    if (status >= 300) throw new UsageError(String((json as Json | undefined)?.['message'] ?? `status ${status}`));
    return (json ?? {}) as Json;
  };
  return {
    ask: (method, path, body) => call('pageserver', method, path, body),
    async places(branch) {
      const query = branch === undefined ? '' : `?branch=${encodeURIComponent(branch)}`;
      return (await call('control', 'GET', `/internal/v1/branch_places${query}`))['branches'] as Place[];
    },
    async download(path) {
      const {status, body} = await requestStream({
        method: 'GET',
        url: `http://127.0.0.1:${ports.pageserverHttp}${path}`,
        token: await issuer.sign({aud: 'pageserver', scope: 'node'}),
      });
      const parts: Buffer[] = [];
      for await (const part of body) parts.push(part);
      const all = Buffer.concat(parts);
      if (status >= 300) throw new UsageError(all.toString('utf8'));
      return all;
    },
  };
}

/** The branch asked for; without one, the only default branch there is. */
async function onePlace(client: Client, args: Arguments): Promise<Place> {
  const branch = args.options.get('--branch');
  const places = await client.places(branch);
  const chosen = branch === undefined ? places.filter((place) => place.isDefault) : places;
  if (chosen.length === 1) return chosen[0]!;
  const names = (chosen.length === 0 ? places : chosen).map((p) => `${p.branchId} (${p.name}, project ${p.projectId})`);
  throw new UsageError(`name one branch with --branch: ${names.join(', ')}`);
}

const pathOf = (place: Place): string => `/v1/tenant/${place.tenantId}/timeline/${place.timelineId}`;

async function verify(client: Client, args: Arguments): Promise<void> {
  const place = await onePlace(client, args);
  const at = args.options.get('--at');
  let lsn: string | undefined;
  if (at !== undefined) lsn = /^[0-9A-Fa-f]+\/[0-9A-Fa-f]+$/.test(at) ? at : await lsnOfTime(client, place, at);
  const answer = await client.ask('POST', `${pathOf(place)}/verify${lsn === undefined ? '' : `?lsn=${lsn}`}`);
  if (args.options.has('--json')) printLine(JSON.stringify(answer, undefined, 2));
  else {
    printLine(
      `branch ${place.name} (${place.branchId}) at ${String(answer['lsn'])}: ${String(answer['pages'])} pages of ${String(answer['forks'])} relation forks in ${String(answer['databases'])} databases, ${String(answer['slruPages'])} SLRU pages`,
    );
    for (const problem of answer['problems'] as string[]) printLine(`PROBLEM ${problem}`);
    printLine(answer['problemCount'] === 0 ? 'every page can be read' : `${String(answer['problemCount'])} problems`);
  }
  if (answer['problemCount'] !== 0) exitProcess(1);
}

async function lsnOfTime(client: Client, place: Place, time: string): Promise<string> {
  const answer = await client.ask('GET', `${pathOf(place)}/lsn_by_timestamp?timestamp=${encodeURIComponent(time)}`);
  if (answer['kind'] === 'past' || answer['kind'] === 'nodata')
    throw new UsageError(`the branch has no history at ${time} (${String(answer['kind'])})`);
  return String(answer['lsn']);
}

async function scrub(client: Client, args: Arguments): Promise<void> {
  const copy = args.options.get('--copy');
  const {tenants} = (await client.ask('GET', '/v1/tenants')) as {tenants: {tenantId: string}[]};
  let unrepaired = 0;
  const reports: Json[] = [];
  for (const {tenantId} of tenants) {
    const report = await client.ask(
      'POST',
      `/v1/tenant/${tenantId}/scrub`,
      copy === undefined ? {} : {copy: parseObjectStore(copy)},
    );
    reports.push(report);
    const findings = report['findings'] as {kind: string; object: string; reason: string; repaired: boolean}[];
    unrepaired += findings.filter(({kind, repaired}) => kind !== 'orphan' && !repaired).length;
    if (args.options.has('--json')) continue;
    printLine(
      `tenant ${tenantId}: ${String(report['layers'])} layers, ${String(report['indexes'])} indexes, ${mb(Number(report['bytes']))} read and checked`,
    );
    for (const {kind, object, reason, repaired} of findings)
      printLine(`  ${repaired ? 'REPAIRED ' : ''}${kind.toUpperCase()} ${object}: ${reason}`);
  }
  if (args.options.has('--json')) printLine(JSON.stringify(reports, undefined, 2));
  else printLine(unrepaired === 0 ? 'nothing is missing or damaged' : `${unrepaired} objects are missing or damaged`);
  if (unrepaired > 0) exitProcess(1);
}

async function sizes(client: Client, args: Arguments): Promise<void> {
  const branch = args.options.get('--branch');
  const places = await client.places(branch);
  const tables = args.options.has('--tables');
  const answers: Json[] = [];
  for (const place of places) {
    const answer = await client.ask('GET', `${pathOf(place)}/sizes${tables ? '?relations=true' : ''}`);
    answers.push({...place, ...answer});
    if (args.options.has('--json')) continue;
    printLine(
      `branch ${place.name} (${place.branchId}): logical ${mb(Number(answer['logicalBytes']))}, stored ${mb(Number(answer['storedBytes']))} in ${String(answer['layers'])} layers, not uploaded yet ${mb(Number(answer['memoryBytes']))}`,
    );
    for (const {what, bytes} of answer['pinnedBy'] as {what: string; bytes: number}[])
      printLine(`  kept by ${what}: ${mb(bytes)}`);
    const relations = (answer['relations'] ?? []) as {
      rel: {spcNode: number; dbNode: number; relNode: number; fork: number};
      logicalBytes: number;
      storedBytes: number;
      versions: number;
    }[];
    for (const {rel, logicalBytes, storedBytes, versions} of relations.filter((r) => r.storedBytes > 0).slice(0, 50)) {
      const name =
        rel.relNode === 0
          ? 'metadata'
          : `${rel.spcNode}/${rel.dbNode}/${rel.relNode}${['', '_fsm', '_vm', '_init'][rel.fork]}`;
      printLine(
        `  ${name.padEnd(28)} logical ${mb(logicalBytes).padStart(10)}  stored ${mb(storedBytes).padStart(10)}  ${versions} versions`,
      );
    }
  }
  if (args.options.has('--json')) printLine(JSON.stringify(answers, undefined, 2));
}

async function layers(client: Client, args: Arguments): Promise<void> {
  const out = args.options.get('--out');
  if (out === undefined) throw new UsageError('layers needs --out FILE.svg');
  const place = await onePlace(client, args);
  const name = encodeURIComponent(`${place.name} (${place.branchId})`);
  systemDisk.writeFileAtomic(out, await client.download(`${pathOf(place)}/layers.svg?name=${name}`), 0o644);
  printLine(`written: ${out}`);
}

function mb(bytes: number): string {
  return bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
