/**
 * A basebackup: the data directory from which stock Postgres starts at LSN X without recovery, as a tar stream (compute.md 2
 * and 3). It holds no relation file but the forks of unlogged relations; the compute's extension brings the others, page by
 * page. WAL consists of one synthesised checkpoint at X.
 */
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {unreachable} from '#runtime/assert.ts';
import {crc32c} from '#runtime/crc.ts';
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {type RelTag, blockSize, defaultTablespace, fork, formatRel, globalTablespace} from '#postgres/relation.ts';
import {
  type SlruKind,
  clogXactsPerPage,
  commitTsXactsPerPage,
  multixactMembersPerPage,
  multixactOffsetsPerPage,
  slruDirectory,
  slruKind,
  slruKinds,
  slruPagesPerSegment,
  slruSegmentName,
} from '#postgres/slru.ts';
import {type TarEntry, writeTar} from '#postgres/tar.ts';
import {alignStartLsn, makeCheckpointSegment} from '#postgres/wal/checkpoint-segment.ts';

/** What a basebackup reads: a part of TimelineReader (timeline/timeline-reader.ts). */
export interface BasebackupSource {
  readonly tenantId: string;
  readonly timelineId: string;
  checkpointState(at: Lsn): Promise<Buffer | undefined>;
  listDatabases(
    at: Lsn,
  ): Promise<readonly {readonly spcNode: number; readonly dbNode: number; readonly hasVersionFile: boolean}[]>;
  relationMap(spcNode: number, dbNode: number, at: Lsn): Promise<Buffer | undefined>;
  /** spcNode 0: of all tablespaces. Only init forks are used. */
  listRelations(
    spcNode: number,
    dbNode: number,
    at: Lsn,
  ): Promise<readonly {readonly rel: RelTag; readonly blocks: number}[]>;
  getRelPages(rel: RelTag, block: number, count: number, at: Lsn): Promise<readonly Buffer[]>;
  slruPages(kind: SlruKind, at: Lsn): Promise<readonly number[]>;
  getSlruPages(kind: SlruKind, pages: readonly number[], at: Lsn): Promise<readonly Buffer[]>;
  twoPhaseFiles(at: Lsn): Promise<readonly {readonly xid: number; readonly contents: Buffer}[]>;
  auxFiles(at: Lsn): Promise<readonly {readonly path: string; readonly contents: Buffer}[]>;
}

export interface BasebackupOptions {
  readonly source: BasebackupSource;
  /** X: an end of a record that the source has ingested. */
  readonly lsn: Lsn;
  /** Start of the record that ends at X, for xl_prev of the synthesised checkpoint. Left out when not known. */
  readonly lastRecordStartLsn?: Lsn;
  /** Leaves the files of pg_wal out: who unpacks it makes them from pg_control (makeCheckpointSegment) and saves a transfer of zeros. */
  readonly withoutWal?: boolean;
}

/** The state cannot make a data directory; the message names tenant, timeline and LSN. */
export class BasebackupError extends Error {}

/**
 * Tar bytes. Throws BasebackupError at once when no compute can start at this LSN. Reads lazily: BasebackupError or what the
 * source throws may also come in the middle of the stream.
 */
export function basebackup(options: BasebackupOptions): AsyncGenerator<Buffer> {
  const {source, lsn} = options;
  const aligned = alignStartLsn(lsn);
  if (aligned !== lsn)
    throw failure(
      source,
      lsn,
      `no WAL record can start there; the next position where one can is ${formatLsn(aligned)}`,
    );
  return writeTar(entries(options));
}

/** Directories that initdb makes; Postgres refuses to start without some of them, and makes none. */
const directories = [
  'base',
  'global',
  'pg_commit_ts',
  'pg_dynshmem',
  'pg_logical',
  'pg_logical/mappings',
  'pg_logical/snapshots',
  'pg_multixact',
  'pg_multixact/members',
  'pg_multixact/offsets',
  'pg_notify',
  'pg_replslot',
  'pg_serial',
  'pg_snapshots',
  'pg_stat',
  'pg_stat_tmp',
  'pg_subtrans',
  'pg_tblspc',
  'pg_twophase',
  'pg_wal',
  'pg_wal/archive_status',
  'pg_xact',
] as const;

const versionFile = Buffer.from('15\n');
const pagesPerRead = 64;

async function* entries({source, lsn, lastRecordStartLsn, withoutWal}: BasebackupOptions): AsyncGenerator<TarEntry> {
  const stored = await source.checkpointState(lsn);
  if (stored === undefined)
    throw failure(source, lsn, 'no checkpoint state: nothing was imported or ingested up to this LSN');
  const state = CheckpointState.decode(stored);
  const {control} = state;
  const catalogDirectory = `PG_15_${control.catalogVersion}`;

  for (const path of directories) yield {path, kind: 'directory'};
  yield file('PG_VERSION', versionFile);
  for (const name of ['postgresql.conf', 'postgresql.auto.conf', 'pg_hba.conf', 'pg_ident.conf'])
    yield file(name, Buffer.alloc(0));

  const globalMap = await source.relationMap(globalTablespace, 0, lsn);
  if (globalMap === undefined) throw failure(source, lsn, 'the relation map of the shared catalogs is missing');
  yield file('global/pg_filenode.map', globalMap);

  const tablespaces = new Set<string>();
  for (const {path, contents} of await source.auxFiles(lsn)) {
    // Tablespaces are plain directories on a compute, which Postgres 15 accepts in place of symbolic links.
    if (/^pg_tblspc\/\d+$/.test(path)) {
      yield* tablespaceDirectory(path, catalogDirectory, tablespaces);
      continue;
    }
    yield file(path, contents);
  }
  for (const {spcNode, dbNode, hasVersionFile} of await source.listDatabases(lsn)) {
    if (spcNode !== defaultTablespace)
      yield* tablespaceDirectory(`pg_tblspc/${spcNode}`, catalogDirectory, tablespaces);
    const directory =
      spcNode === defaultTablespace ? `base/${dbNode}` : `pg_tblspc/${spcNode}/${catalogDirectory}/${dbNode}`;
    yield {path: directory, kind: 'directory'};
    if (hasVersionFile) {
      const map = await source.relationMap(spcNode, dbNode, lsn);
      if (map === undefined)
        throw failure(source, lsn, `the relation map of database ${dbNode} in tablespace ${spcNode} is missing`);
      yield file(`${directory}/PG_VERSION`, versionFile);
      yield file(`${directory}/pg_filenode.map`, map);
    }
    yield* unloggedRelations(source, spcNode, dbNode, directory, lsn);
  }

  for (const kind of slruKinds) yield* slruSegments(source, kind, neededPage(kind, state), lsn);
  for (const {xid, contents} of await source.twoPhaseFiles(lsn))
    yield file(`pg_twophase/${xid.toString(16).toUpperCase().padStart(8, '0')}`, contents);
  if (state.origins.size > 0) yield file('pg_logical/replorigin_checkpoint', originsFile(state.origins));

  const {checkPoint} = control;
  // Commit timestamps of all ids below nextXid may be asked for; the last checkpoint knew only an older bound.
  if (control.trackCommitTimestamp && checkPoint.newestCommitTsXid !== 0)
    checkPoint.newestCommitTsXid = (state.nextXid32 - 1) >>> 0;
  const made = makeCheckpointSegment({
    lsn,
    controlFile: control,
    ...(lastRecordStartLsn === undefined ? {} : {previousLsn: lastRecordStartLsn}),
  });
  if (withoutWal !== true) for (const {name, bytes} of made.files) yield file(`pg_wal/${name}`, bytes);
  // Last: without it Postgres does not start from a backup that was cut off.
  yield file('global/pg_control', made.controlFile);
}

function file(path: string, contents: Buffer): TarEntry {
  return {path, kind: 'file', contents};
}

function* tablespaceDirectory(path: string, catalogDirectory: string, made: Set<string>): Generator<TarEntry> {
  if (made.has(path)) return;
  made.add(path);
  yield {path, kind: 'directory'};
  yield {path: `${path}/${catalogDirectory}`, kind: 'directory'};
}

/** As after a crash: the init fork, and a copy of it as the main fork. */
async function* unloggedRelations(
  source: BasebackupSource,
  spcNode: number,
  dbNode: number,
  directory: string,
  lsn: Lsn,
): AsyncGenerator<TarEntry> {
  for (const {rel, blocks} of await source.listRelations(spcNode, dbNode, lsn)) {
    if (rel.fork !== fork.init) continue;
    const pages: Buffer[] = [];
    for (let block = 0; block < blocks; block += pagesPerRead)
      pages.push(...(await source.getRelPages(rel, block, Math.min(pagesPerRead, blocks - block), lsn)));
    const contents = Buffer.concat(pages);
    if (contents.length !== blocks * blockSize)
      throw failure(source, lsn, `init fork ${formatRel(rel)}: ${contents.length} bytes, expected ${blocks} blocks`);
    yield file(`${directory}/${rel.relNode}_init`, contents);
    yield file(`${directory}/${rel.relNode}`, contents);
  }
}

/**
 * The page where Postgres clears what lies behind the next id at start (TrimCLOG, TrimMultiXact): it must exist, unless the
 * next id is the first of its page. WAL always made it before; this also holds when a state was rounded up.
 */
function neededPage(kind: SlruKind, state: CheckpointState): number | undefined {
  const {checkPoint} = state.control;
  const needed = (next: number, perPage: number): number | undefined =>
    next % perPage === 0 ? undefined : Math.floor(next / perPage);
  switch (kind) {
    case slruKind.clog:
      return needed(state.nextXid32, clogXactsPerPage);
    case slruKind.multixactOffsets:
      return needed(checkPoint.nextMulti, multixactOffsetsPerPage);
    case slruKind.multixactMembers:
      return needed(checkPoint.nextMultiOffset, multixactMembersPerPage);
    case slruKind.commitTs:
      // Postgres makes the page of nextXid itself; ids below it may be asked for too.
      return state.control.trackCommitTimestamp && checkPoint.newestCommitTsXid !== 0
        ? Math.floor(((state.nextXid32 - 1) >>> 0) / commitTsXactsPerPage)
        : undefined;
    default:
      return unreachable(kind);
  }
}

async function* slruSegments(
  source: BasebackupSource,
  kind: SlruKind,
  needed: number | undefined,
  lsn: Lsn,
): AsyncGenerator<TarEntry> {
  const segments = new Map<number, number[]>();
  const pages = await source.slruPages(kind, lsn);
  for (const page of pages) {
    const segment = Math.floor(page / slruPagesPerSegment);
    const known = segments.get(segment);
    if (known === undefined) segments.set(segment, [page]);
    else known.push(page);
  }
  const neededSegment = needed === undefined ? undefined : Math.floor(needed / slruPagesPerSegment);
  if (neededSegment !== undefined && !segments.has(neededSegment)) segments.set(neededSegment, []);
  for (const [segment, numbers] of segments) {
    const first = segment * slruPagesPerSegment;
    const last = Math.max(...numbers, segment === neededSegment ? needed! : 0);
    // Pages that do not exist read as zeros, as in a file with holes.
    const contents = Buffer.alloc((last - first + 1) * blockSize);
    const images = await source.getSlruPages(kind, numbers, lsn);
    numbers.forEach((page, i) => images[i]!.copy(contents, (page - first) * blockSize));
    yield file(`${slruDirectory(kind)}/${slruSegmentName(segment)}`, contents);
  }
}

/** replication/logical/origin.c CheckPointReplicationOrigin. */
function originsFile(origins: ReadonlyMap<number, bigint>): Buffer {
  const bytes = Buffer.alloc(4 + origins.size * 16 + 4);
  bytes.writeUInt32LE(0x1257dade, 0);
  let at = 4;
  for (const [origin, remoteLsn] of origins) {
    bytes.writeUInt16LE(origin, at);
    bytes.writeBigUInt64LE(remoteLsn, at + 8);
    at += 16;
  }
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, at)), at);
  return bytes;
}

function failure(source: BasebackupSource, lsn: Lsn, problem: string): BasebackupError {
  return new BasebackupError(
    `basebackup of tenant ${source.tenantId} timeline ${source.timelineId} at ${formatLsn(lsn)}: ${problem}`,
  );
}
