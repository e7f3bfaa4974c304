/** `pagoda scrub | verify | sizes | layers`: what storage holds, whether it is whole, and why it is kept. */
import {systemDisk} from '#runtime/disk.ts';
import {exitProcess, printLine} from '#runtime/process.ts';
import {type Arguments, UsageError} from '#cli/arguments.ts';
import {
  type BranchPlace,
  type InternalClient,
  type PageserverPlace,
  connectInternally,
  lsnAt,
  onePlace,
} from '#cli/internal-client.ts';
import {scrubWal} from '#cli/inspect/scrub-wal.ts';
import type {Layout} from '#cli/layout.ts';
import {parseObjectStore} from '#cli/object-store-choice.ts';
import {openStore, storeOf} from '#cli/wal/locate.ts';

export const inspectOptions = {
  '--branch': 'value',
  '--at': 'value',
  '--copy': 'value',
  '--out': 'value',
  '--shard': 'value',
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
  pagoda layers [--branch B] [--shard N] --out FILE.svg
                         a picture of a branch's layers, of one shard when there are several
`;

type Json = Readonly<Record<string, unknown>>;
export async function inspect(command: string, args: Arguments, layout: Layout): Promise<void> {
  if (args.words.length > 0) throw new UsageError(`${command} takes options only; see \`pagoda help\``);
  const client = await connectInternally(layout);
  switch (command) {
    case 'verify':
      return verify(client, args);
    case 'scrub':
      return scrub(client, args, layout);
    case 'sizes':
      return sizes(client, args);
    default:
      return layers(client, args);
  }
}

type Client = InternalClient;

const branchOf = (args: Arguments): string | undefined => args.options.get('--branch');

async function verify(client: Client, args: Arguments): Promise<void> {
  const place = await onePlace(client, branchOf(args));
  const lsn = await lsnAt(client, place, args.options.get('--at'));
  // At one LSN in all shards.
  const query = `?lsn=${lsn ?? String((await client.askTimeline(place, 'GET', ''))['lastRecordLsn'])}`;
  const answer = sumOfShards(
    await Promise.all(
      place.shards.map((shard) => client.askTimeline(place, 'POST', `/verify${query}`, undefined, shard)),
    ),
  );
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

/** Each shard rebuilds its own pages; relations are known to all of them, the rest to shard 0. */
function sumOfShards(answers: readonly Json[]): Json {
  const sum = (field: string): number => answers.reduce((total, answer) => total + Number(answer[field]), 0);
  return {
    ...answers[0],
    pages: sum('pages'),
    newPages: sum('newPages'),
    problemCount: sum('problemCount'),
    problems: answers.flatMap((answer) => answer['problems'] as string[]),
  };
}

interface ScrubFinding {
  readonly kind: string;
  readonly object: string;
  readonly reason: string;
  readonly repaired: boolean;
}

async function scrub(client: Client, args: Arguments, layout: Layout): Promise<void> {
  const copy = args.options.get('--copy');
  const asJson = args.options.has('--json');
  let unrepaired = 0;
  const say = (line: string, findings: readonly ScrubFinding[]): void => {
    unrepaired += findings.filter(({kind, repaired}) => kind !== 'orphan' && !repaired).length;
    if (asJson) return;
    printLine(line);
    for (const {kind, object, reason, repaired} of findings)
      printLine(`  ${repaired ? 'REPAIRED ' : ''}${kind.toUpperCase()} ${object}: ${reason}`);
  };
  const tenants: Json[] = [];
  for (const {tenantId, node} of await tenantsAndHolders(client)) {
    const body = copy === undefined ? undefined : {copy: parseObjectStore(copy)};
    const report = await client.ask(node, 'POST', `/v1/tenant/${tenantId}/scrub`, body);
    tenants.push({...report, pageserver: node.nodeId});
    say(
      `tenant ${tenantId}: ${String(report['layers'])} layers, ${String(report['indexes'])} indexes, ${mb(Number(report['bytes']))} read and checked`,
      report['findings'] as ScrubFinding[],
    );
  }
  const wal = await scrubWal({
    store: storeOf(layout),
    copy: copy === undefined ? undefined : openStore(parseObjectStore(copy)),
    timelines: async () =>
      new Set((await client.places(undefined)).map(({tenantId, timelineId}) => `${tenantId}/${timelineId}`)),
  });
  for (const {tenantId, timelineId, objects, bytes, findings} of wal)
    say(`WAL of tenant ${tenantId}, timeline ${timelineId}: ${objects} objects, ${mb(bytes)}`, findings);
  if (asJson) printLine(JSON.stringify({tenants, wal}, undefined, 2));
  else printLine(unrepaired === 0 ? 'nothing is missing or damaged' : `${unrepaired} objects are missing or damaged`);
  if (unrepaired > 0) exitProcess(1);
}

/**
 * All tenants and shards that have objects, and the pageserver to ask about each: the one that holds it under the newest generation
 * knows what is being written, and has a cache to repair from.
 */
async function tenantsAndHolders(client: Client): Promise<{tenantId: string; node: PageserverPlace}[]> {
  const nodes = (await client.pageservers()).filter(({answers}) => answers);
  const [first] = nodes;
  if (first === undefined) throw new UsageError('no pageserver answers; see `pagoda pageservers list`');
  const found = new Map<string, {node: PageserverPlace; generation: number}>();
  for (const node of nodes) {
    // What lies in the store is the same for all of them.
    const path = `/v1/tenants${node === first ? '?stored=true' : ''}`;
    const {tenants} = (await client.ask(node, 'GET', path)) as {tenants: {tenantId: string; generation?: number}[]};
    for (const {tenantId, generation = 0} of tenants)
      if (generation >= (found.get(tenantId)?.generation ?? 0)) found.set(tenantId, {node, generation});
  }
  return [...found].map(([tenantId, {node}]) => ({tenantId, node}));
}

async function sizes(client: Client, args: Arguments): Promise<void> {
  const branch = args.options.get('--branch');
  const places = await client.places(branch);
  const tables = args.options.has('--tables');
  const answers: Json[] = [];
  for (const place of places) {
    for (const shard of place.shards) {
      const answer = await client.askTimeline(
        place,
        'GET',
        `/sizes${tables ? '?relations=true' : ''}`,
        undefined,
        shard,
      );
      answers.push({...place, shard: shard.shardId, ...answer});
      if (!args.options.has('--json'))
        printSizes(place, place.shards.length > 1 ? shard.shardId.slice(33) : '', answer);
    }
  }
  if (args.options.has('--json')) printLine(JSON.stringify(answers, undefined, 2));
}

/** `shard`: the end of its id, when there are several. */
function printSizes(place: BranchPlace, shard: string, answer: Json): void {
  printLine(
    `branch ${place.name} (${place.branchId})${shard === '' ? '' : `, shard ${shard}`}: logical ${mb(Number(answer['logicalBytes']))}, stored ${mb(Number(answer['storedBytes']))} in ${String(answer['layers'])} layers, not uploaded yet ${mb(Number(answer['memoryBytes']))}`,
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

async function layers(client: Client, args: Arguments): Promise<void> {
  const out = args.options.get('--out');
  if (out === undefined) throw new UsageError('layers needs --out FILE.svg');
  const place = await onePlace(client, branchOf(args));
  const name = encodeURIComponent(`${place.name} (${place.branchId})`);
  const parts: Buffer[] = [];
  const number = Number(args.options.get('--shard') ?? 0);
  const shard = place.shards[number];
  if (shard === undefined) throw new UsageError(`branch ${place.name} has ${place.shards.length} shards, from 0`);
  for await (const part of (await client.streamTimeline(place, `/layers.svg?name=${name}`, shard)).body)
    parts.push(part);
  systemDisk.writeFileAtomic(out, Buffer.concat(parts), 0o644);
  printLine(`written: ${out}`);
}

function mb(bytes: number): string {
  return bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
