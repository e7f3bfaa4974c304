/**
 * `pagoda export --out DIR`: a branch at an LSN as a plain data directory of stock PostgreSQL, made from storage alone. No compute
 * runs for it and nothing of Pagoda is needed to start it: what goes in can always come out.
 *
 * Everything but relations is the pageserver's basebackup (control file in state "shut down", one checkpoint in the WAL); the
 * relations are read from the page service, page by page.
 */
import {systemClock} from '#runtime/clock.ts';
import {type Disk, dirname, joinPath, systemDisk} from '#runtime/disk.ts';
import {environment, printLine, runsAsRoot} from '#runtime/process.ts';
import {type Lsn, parseLsn} from '#postgres/lsn.ts';
import {type RelTag, blockSize, globalTablespace, relPath, relSegmentBlocks} from '#postgres/relation.ts';
import {PagesClient, type RelListEntry, pagesPerRequestMax} from '#wire/pages.ts';
import {shardOfBlock} from '#wire/shard.ts';
import {type Arguments, UsageError} from '#cli/arguments.ts';
import {giveAway, unpackBasebackup} from '#compute/basebackup.ts';
import {connectInternally, lsnAt, onePlace} from '#cli/internal-client.ts';
import type {Layout} from '#cli/layout.ts';

export const exportOptions = {'--branch': 'value', '--at': 'value', '--out': 'value'} as const;

export const exportHelp = `  pagoda export [--branch B] [--at LSN|TIME] --out DIR
                         a branch as a data directory that stock PostgreSQL starts, of any point of its history
`;

const requestsInFlight = 8;
/** History at the exported LSN must stay for as long as the export takes; it is asked for again meanwhile. */
const leaseSeconds = 600;
const adminRole = 'pagoda_admin';

export async function exportBranch(args: Arguments, layout: Layout): Promise<void> {
  const out = args.options.get('--out');
  if (out === undefined || args.words.length > 0) throw new UsageError('export needs --out DIR; see `pagoda help`');
  if (systemDisk.exists(out) && systemDisk.list(out).length > 0) throw new UsageError(`${out} is not empty`);
  const client = await connectInternally(layout);
  const place = await onePlace(client, args.options.get('--branch'));
  const wanted =
    (await lsnAt(client, place, args.options.get('--at'))) ??
    String((await client.askTimeline(place, 'GET', ''))['lastRecordLsn']);
  const lease = (): Promise<unknown> =>
    Promise.all(
      place.shards.map((shard) =>
        client.askTimeline(place, 'PUT', '/lease', {lsn: wanted, ttlSeconds: leaseSeconds}, shard),
      ),
    );
  await lease();
  let leasedMs = systemClock.monotonicMs();

  const {headers, body} = await client.streamTimeline(place, `/basebackup?lsn=${encodeURIComponent(wanted)}`);
  const lsn = parseLsn(headers['x-pagoda-lsn'] ?? wanted);
  const where = `branch ${place.branchId} (timeline ${place.timelineId}), LSN ${wanted}`;
  const databases = await unpackBasebackup(systemDisk, out, body, {where, isLasting: true});
  const shards: PagesClient[] = [];
  let relations = 0;
  let bytes = 0;
  try {
    for (const shard of place.shards)
      shards.push(await PagesClient.connect(shard, await client.pageToken(), shard.shardId, place.timelineId));
    const places = [{spcNode: globalTablespace, dbNode: 0}, ...databases.map((dbNode) => ({spcNode: 0, dbNode}))];
    for (const {spcNode, dbNode} of places) {
      for (const entry of await shards[0]!.listDb(spcNode, dbNode, {requestLsn: lsn})) {
        await writeRelation(systemDisk, out, shards, entry, lsn);
        relations++;
        bytes += entry.blocks * blockSize;
        if (systemClock.monotonicMs() - leasedMs < (leaseSeconds * 1000) / 3) continue;
        leasedMs = systemClock.monotonicMs();
        await lease();
      }
    }
  } finally {
    for (const pages of shards) pages.close();
  }
  const owner = runsAsRoot ? 'postgres' : (environment['USER'] ?? '');
  configure(systemDisk, out, owner);
  giveAway(systemDisk, out, owner, 0o700);
  printLine(
    `branch ${place.name} (${place.branchId}) at ${wanted}: ${relations} relation files, ${(bytes / 1e6).toFixed(1)} MB in ${out}`,
  );
  printLine(`start it as user ${owner}: postgres -D ${out} -k /tmp; connect as ${adminRole} through the socket`);
}

async function writeRelation(
  disk: Disk,
  out: string,
  shards: readonly PagesClient[],
  {rel, blocks}: RelListEntry,
  lsn: Lsn,
): Promise<void> {
  const first = relationFile(rel);
  for (let segment = 0; segment === 0 || segment * relSegmentBlocks < blocks; segment++) {
    const path = joinPath(out, segment === 0 ? first : `${first}.${segment}`);
    disk.makeDirectory(dirname(path));
    const file = disk.open(path, 'truncate');
    const base = segment * relSegmentBlocks;
    const count = Math.min(blocks - base, relSegmentBlocks);
    let next = 0;
    const fetch = async (): Promise<void> => {
      while (next < count) {
        const at = next;
        next += pagesPerRequestMax;
        const wanted = Math.min(pagesPerRequestMax, count - at);
        // Stripes begin at multiples of pagesPerRequestMax: a request has one owner.
        const pages = shards[shardOfBlock(shards.length, rel, base + at)]!;
        const run = await pages.getPageRun(rel, base + at, wanted, {requestLsn: lsn});
        if (run.bytes.length !== wanted * blockSize)
          throw new Error(`block ${base + at} of ${first}: ${run.bytes.length} bytes came instead of ${wanted} pages`);
        file.write(run.bytes, at * blockSize);
        run.release();
      }
    };
    try {
      await Promise.all(Array.from({length: requestsInFlight}, fetch));
      await file.sync();
    } finally {
      file.close();
    }
  }
}

function relationFile(rel: RelTag): string {
  const path = relPath(rel);
  if (path !== undefined) return path;
  throw new UsageError(
    `the branch has a tablespace of its own (${rel.spcNode}); move its tables to pg_default (alter table … set tablespace) and export again`,
  );
}

/** For a server that nobody but its owner reaches at first. */
function configure(disk: Disk, out: string, owner: string): void {
  const write = (name: string, lines: readonly string[]): void =>
    disk.writeFileAtomic(joinPath(out, name), Buffer.from(`${lines.join('\n')}\n`), 0o600);
  write('postgresql.conf', ["listen_addresses = 'localhost'", 'password_encryption = scram-sha-256']);
  write('pg_hba.conf', [
    `local all ${adminRole} peer map=pagoda`,
    'local all all scram-sha-256',
    'host all all 127.0.0.1/32 scram-sha-256',
    'host all all ::1/128 scram-sha-256',
  ]);
  write('pg_ident.conf', [`pagoda ${owner} ${adminRole}`]);
}
