/**
 * Import of a cluster: a tar stream of a cleanly shut-down data directory becomes the first values of a timeline.
 *
 * All values get one LSN: the end of the shutdown checkpoint record that pg_control names, rounded up to 8 (its EndRecPtr).
 * That is where the next record would start, so: the LSN from which a compute can start (X of compute.md 2), the LSN where the
 * timeline's own WAL begins, and not above the end of any record that will follow. Page LSNs inside the images are older.
 *
 * Not imported, because a compute starts without it: WAL, main forks of unlogged relations (their init forks are), temporary
 * relations, replication slots, configuration files.
 */
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import type {IngestSink} from '#pageserver/ingest/sink.ts';
import {
  catalogVersion,
  type ControlFile,
  ControlFileError,
  databaseState,
  parseControlFile,
} from '#postgres/control-file.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import {crc32c} from '#runtime/crc.ts';
import {
  type ForkNumber,
  blockSize,
  fork,
  globalTablespace,
  relSegmentBlocks,
  defaultTablespace,
} from '#postgres/relation.ts';
import {hasRightChecksum} from '#postgres/page-checksum.ts';
import {parseRelationMap, relationMapSize, RelationMapError} from '#postgres/relmap.ts';
import {type SlruKind, parseSlruSegmentName, slruDirectory, slruKinds, slruPagesPerSegment} from '#postgres/slru.ts';
import {TarError, type TarMember, readTar} from '#postgres/tar.ts';
import {checkpointRecordLength} from '#postgres/wal/checkpoint-segment.ts';
import {longPageHeaderSize, shortPageHeaderSize, walPageSize, walSegmentSizeDefault} from '#postgres/wal/segment.ts';

/** The directory cannot be imported; the message says why and what to do. */
export class ImportError extends Error {}

export interface ImportResult {
  /** Where the timeline starts. */
  readonly lsn: Lsn;
  /** Start of the shutdown checkpoint record, the last one: xl_prev of what follows. */
  readonly lastRecordStartLsn: Lsn;
  readonly systemId: bigint;
  readonly checkpoint: CheckpointState;
  readonly relations: number;
  readonly pages: number;
}

export interface ImportOptions {
  readonly source: AsyncIterable<Buffer>;
  /**
   * Receives the values. Differences from ingest: pages and relation maps come before createRelation and createDatabase of
   * what they belong to; createRelation and setRelationSize come at the very end, once per fork.
   */
  readonly sink: IngestSink;
  /** Called about every `pauseBytes` (default 16 MiB) of pages, so that the sink can flush. */
  readonly pause?: () => Promise<void>;
  readonly pauseBytes?: number;
}

const smallFileBytesMax = 64 * 1024 * 1024;

/** Reads the archive to its end. Throws ImportError or TarError; the timeline must then be thrown away. */
export async function importDataDirectory(options: ImportOptions): Promise<ImportResult> {
  const importer = new Importer(options);
  try {
    for await (const member of readTar(options.source)) await importer.member(member);
    return importer.finish();
  } catch (error) {
    if (error instanceof ControlFileError || error instanceof RelationMapError)
      throw new ImportError(`cannot import the data directory: ${error.message}`, {cause: error});
    throw error;
  }
}

interface RelationFork {
  readonly spcNode: number;
  readonly dbNode: number;
  readonly relNode: number;
  readonly fork: ForkNumber;
  blocks: number;
}

class Importer {
  readonly #options: ImportOptions;
  readonly #sink: IngestSink;
  readonly #forks = new Map<string, RelationFork>();
  /** Relations with an init fork: unlogged. */
  readonly #unlogged = new Set<string>();
  readonly #databases = new Map<string, {spcNode: number; dbNode: number; hasVersionFile: boolean}>();
  readonly #tablespaces = new Set<number>();
  #control: ControlFile | undefined;
  #origins: [number, bigint][] = [];
  #lsn = lsn(0);
  #hasChecksums = false;
  #versionSeen = false;
  #globalMapSeen = false;
  #pages = 0;
  #bytesSincePause = 0;

  constructor(options: ImportOptions) {
    this.#options = options;
    this.#sink = options.sink;
  }

  async member(member: TarMember): Promise<void> {
    const {path} = member;
    if (member.kind === 'symlink' && /^pg_tblspc\/\d+$/.test(path))
      throw new ImportError(
        `tablespace ${path} is a symbolic link in the archive: make the archive so that it follows links (tar --dereference)`,
      );
    if (member.kind !== 'file') return;
    if (path === 'global/pg_control') {
      this.#useControlFile(await member.bytes(smallFileBytesMax));
      return;
    }
    if (path === 'backup_label' || path === 'standby.signal' || path === 'recovery.signal')
      throw new ImportError(
        `the directory holds ${path}: it is a backup or a standby. Start it, let it finish recovery, stop it, and import again`,
      );
    const kind = classify(path);
    if (kind.kind === 'ignored') return;
    if (this.#control === undefined)
      throw new ImportError(
        'global/pg_control must come first in the archive: tar it as `tar -cf - global/pg_control .` from inside the directory',
      );
    switch (kind.kind) {
      case 'version':
        await this.#useVersion(member, kind);
        return;
      case 'relation-map':
        await this.#useRelationMap(member, kind);
        return;
      case 'relation':
        await this.#useRelationFile(member, kind);
        return;
      case 'slru':
        await this.#useSlruSegment(member, kind.slru, kind.segment);
        return;
      case 'two-phase':
        this.#sink.putTwoPhase(kind.xid, await member.bytes(smallFileBytesMax), this.#lsn);
        return;
      case 'aux':
        this.#sink.putAuxFile(path, await member.bytes(smallFileBytesMax), this.#lsn);
        return;
      case 'origins':
        this.#origins = parseOrigins(await member.bytes(smallFileBytesMax));
        return;
      default:
        kind satisfies never;
    }
  }

  finish(): ImportResult {
    const control = this.#control;
    if (control === undefined)
      throw new ImportError('the archive holds no global/pg_control: it is not a data directory');
    if (!this.#versionSeen) throw new ImportError('the archive holds no PG_VERSION: it is not a whole data directory');
    if (!this.#globalMapSeen)
      throw new ImportError('the archive holds no global/pg_filenode.map: it is not a whole data directory');
    for (const spcNode of this.#tablespaces) this.#sink.putAuxFile(`pg_tblspc/${spcNode}`, Buffer.alloc(0), this.#lsn);
    for (const d of this.#databases.values())
      this.#sink.createDatabase(d.spcNode, d.dbNode, d.hasVersionFile, this.#lsn);
    let relations = 0;
    for (const f of this.#forks.values()) {
      if (f.fork !== fork.init && this.#unlogged.has(relationKey(f))) continue;
      this.#sink.createRelation(f.spcNode, f.dbNode, f.relNode, f.fork, this.#lsn);
      if (f.blocks > 0) this.#sink.setRelationSize(f.spcNode, f.dbNode, f.relNode, f.fork, f.blocks, this.#lsn);
      if (f.fork === fork.main) relations++;
    }
    const checkpoint = new CheckpointState(control);
    for (const [origin, remoteLsn] of this.#origins) checkpoint.origins.set(origin, remoteLsn);
    this.#sink.putCheckpointState(checkpoint.encode(), this.#lsn);
    return {
      lsn: this.#lsn,
      lastRecordStartLsn: control.checkPointLsn,
      systemId: control.systemId,
      checkpoint,
      relations,
      pages: this.#pages,
    };
  }

  #useControlFile(bytes: Buffer): void {
    const control = parseControlFile(bytes);
    // One branch has one history; the number is part of every WAL page that its computes will write.
    control.checkPoint.timeline = 1;
    if (this.#control !== undefined) {
      if (!this.#control.bytes.equals(control.bytes))
        throw new ImportError('the archive holds two different global/pg_control');
      return;
    }
    if (control.state !== databaseState.shutDown)
      throw new ImportError(
        'the cluster was not shut down cleanly: start it, stop it with `pg_ctl stop -m fast`, and import again',
      );
    if (control.catalogVersion !== catalogVersion)
      throw new ImportError(
        `the cluster has catalogs of version ${control.catalogVersion}, PostgreSQL 15 has ${catalogVersion}: it comes from a beta, or from another product. Dump it with its own pg_dump, and import the dump`,
      );
    if (
      control.blockSize !== blockSize ||
      control.walBlockSize !== walPageSize ||
      control.walSegmentSize !== walSegmentSizeDefault
    )
      throw new ImportError(
        `the cluster has pages of ${control.blockSize} bytes, WAL pages of ${control.walBlockSize} and WAL segments of ${control.walSegmentSize}; only 8192, 8192 and ${walSegmentSizeDefault} are supported`,
      );
    this.#hasChecksums = control.dataChecksumVersion !== 0;
    // Checked here for the last time: storage has checksums of its own, and pages made by redo have none of Postgres's.
    control.dataChecksumVersion = 0;
    this.#control = control;
    this.#lsn = endOfCheckpointRecord(control.checkPointLsn);
  }

  async #useVersion(member: TarMember, where: {readonly spcNode?: number; readonly dbNode?: number}): Promise<void> {
    const version = (await member.bytes(100)).toString().trim();
    if (version !== '15') throw new ImportError(`${member.path} says PostgreSQL ${version}; only 15 can be imported`);
    if (where.spcNode === undefined || where.dbNode === undefined) this.#versionSeen = true;
    else this.#database(where.spcNode, where.dbNode).hasVersionFile = true;
  }

  async #useRelationMap(member: TarMember, where: {readonly spcNode: number; readonly dbNode: number}): Promise<void> {
    const map = await member.bytes(relationMapSize);
    parseRelationMap(map);
    if (where.dbNode === 0) this.#globalMapSeen = true;
    else this.#database(where.spcNode, where.dbNode);
    this.#sink.putRelationMap(where.spcNode, where.dbNode, map, this.#lsn);
  }

  async #useRelationFile(member: TarMember, file: RelationFile): Promise<void> {
    if (member.size % blockSize !== 0)
      throw new ImportError(
        `${member.path} has ${member.size} bytes, not a multiple of ${blockSize}: the file is damaged`,
      );
    const {spcNode, dbNode, relNode, fork: forkNumber} = file;
    if (dbNode !== 0) this.#database(spcNode, dbNode);
    if (spcNode !== defaultTablespace && spcNode !== globalTablespace) this.#tablespaces.add(spcNode);
    if (forkNumber === fork.init) this.#unlogged.add(relationKey(file));
    else if (this.#unlogged.has(relationKey(file))) return;
    const key = `${relationKey(file)}/${forkNumber}`;
    let known = this.#forks.get(key);
    if (known === undefined) {
      known = {spcNode, dbNode, relNode, fork: forkNumber, blocks: 0};
      this.#forks.set(key, known);
    }
    const firstBlock = file.segment * relSegmentBlocks;
    known.blocks = Math.max(known.blocks, firstBlock + member.size / blockSize);
    let block = firstBlock;
    for await (const page of pagesOf(member.body)) {
      // A page of zeros below the relation's size needs no value.
      if (!page.equals(zeroPage)) {
        if (this.#hasChecksums && !hasRightChecksum(page, block))
          throw new ImportError(
            `block ${block - firstBlock} of ${member.path} has a wrong checksum: the file is damaged. Restore it from a backup, or see what \`pg_checksums --check\` says`,
          );
        this.#sink.relationPageImage(spcNode, dbNode, relNode, forkNumber, block, this.#lsn, page);
        await this.#countPage();
      }
      block++;
    }
  }

  async #useSlruSegment(member: TarMember, kind: SlruKind, segment: number): Promise<void> {
    if (member.size % blockSize !== 0)
      throw new ImportError(
        `${member.path} has ${member.size} bytes, not a multiple of ${blockSize}: the file is damaged`,
      );
    let page = segment * slruPagesPerSegment;
    for await (const image of pagesOf(member.body)) {
      this.#sink.slruPageImage(kind, page++, this.#lsn, image);
      await this.#countPage();
    }
  }

  #database(spcNode: number, dbNode: number): {hasVersionFile: boolean} {
    const key = `${spcNode}/${dbNode}`;
    let database = this.#databases.get(key);
    if (database === undefined) {
      database = {spcNode, dbNode, hasVersionFile: false};
      this.#databases.set(key, database);
    }
    return database;
  }

  async #countPage(): Promise<void> {
    this.#pages++;
    this.#bytesSincePause += blockSize;
    if (this.#bytesSincePause < (this.#options.pauseBytes ?? 16 * 1024 * 1024)) return;
    this.#bytesSincePause = 0;
    await this.#options.pause?.();
  }
}

/** EndRecPtr of the shutdown checkpoint record that starts here: it may go on behind a page header. */
export function endOfCheckpointRecord(start: Lsn): Lsn {
  const pageEnd = start - (start % walPageSize) + walPageSize;
  const length = Math.ceil(checkpointRecordLength / 8) * 8;
  if (start + length <= pageEnd) return lsn(start + length);
  // Padding is behind the last byte: what is on the next page is the rest of the 114 bytes, rounded up.
  const rest = Math.ceil((checkpointRecordLength - (pageEnd - start)) / 8) * 8;
  return lsn(pageEnd + (pageEnd % walSegmentSizeDefault === 0 ? longPageHeaderSize : shortPageHeaderSize) + rest);
}

interface RelationFile {
  readonly spcNode: number;
  readonly dbNode: number;
  readonly relNode: number;
  readonly fork: ForkNumber;
  readonly segment: number;
}

type FileKind =
  | {readonly kind: 'ignored'}
  | {readonly kind: 'version'; readonly spcNode?: number; readonly dbNode?: number}
  | {readonly kind: 'relation-map'; readonly spcNode: number; readonly dbNode: number}
  | ({readonly kind: 'relation'} & RelationFile)
  | {readonly kind: 'slru'; readonly slru: SlruKind; readonly segment: number}
  | {readonly kind: 'two-phase'; readonly xid: number}
  | {readonly kind: 'aux'}
  | {readonly kind: 'origins'};

const forkBySuffix: Readonly<Record<string, ForkNumber>> = {
  '': fork.main,
  _fsm: fork.fsm,
  _vm: fork.vm,
  _init: fork.init,
};

function classify(path: string): FileKind {
  if (path === 'PG_VERSION') return {kind: 'version'};
  if (path === 'pg_stat/pgstat.stat') return {kind: 'aux'};
  if (path === 'pg_logical/replorigin_checkpoint') return {kind: 'origins'};
  const slash = path.lastIndexOf('/');
  const directory = path.slice(0, slash);
  const name = path.slice(slash + 1);
  for (const slru of slruKinds) {
    if (directory !== slruDirectory(slru)) continue;
    const segment = parseSlruSegmentName(name);
    return segment === undefined ? {kind: 'ignored'} : {kind: 'slru', slru, segment};
  }
  if (directory === 'pg_twophase' && /^[0-9A-F]{8}$/.test(name)) return {kind: 'two-phase', xid: parseInt(name, 16)};
  const where = databaseOf(directory);
  if (where === undefined) return {kind: 'ignored'};
  if (name === 'pg_filenode.map') return {kind: 'relation-map', ...where};
  if (name === 'PG_VERSION' && where.dbNode !== 0) return {kind: 'version', ...where};
  const match = /^(\d+)(_fsm|_vm|_init)?(?:\.(\d+))?$/.exec(name);
  if (match === null) return {kind: 'ignored'}; // temporary relations (t3_16384), pg_internal.init
  return {
    kind: 'relation',
    ...where,
    relNode: Number(match[1]),
    fork: forkBySuffix[match[2] ?? '']!,
    segment: Number(match[3] ?? 0),
  };
}

function databaseOf(directory: string): {spcNode: number; dbNode: number} | undefined {
  if (directory === 'global') return {spcNode: globalTablespace, dbNode: 0};
  const inDefault = /^base\/(\d+)$/.exec(directory);
  if (inDefault !== null) return {spcNode: defaultTablespace, dbNode: Number(inDefault[1])};
  const inOther = /^pg_tblspc\/(\d+)\/PG_15_\d+\/(\d+)$/.exec(directory);
  if (inOther !== null) return {spcNode: Number(inOther[1]), dbNode: Number(inOther[2])};
  return undefined;
}

const zeroPage = Buffer.alloc(blockSize);

function relationKey(r: {readonly spcNode: number; readonly dbNode: number; readonly relNode: number}): string {
  return `${r.spcNode}/${r.dbNode}/${r.relNode}`;
}

/** Pages of their own memory, from chunks of any size. */
async function* pagesOf(body: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let page = Buffer.allocUnsafe(blockSize);
  let filled = 0;
  for await (const chunk of body) {
    for (let at = 0; at < chunk.length;) {
      const count = chunk.copy(page, filled, at);
      at += count;
      filled += count;
      if (filled < blockSize) continue;
      yield page;
      page = Buffer.allocUnsafe(blockSize);
      filled = 0;
    }
  }
  if (filled > 0) throw new TarError('a file ends inside a page');
}

/** pg_logical/replorigin_checkpoint (replication/logical/origin.c): magic, entries of 16 bytes, checksum. */
function parseOrigins(bytes: Buffer): [number, bigint][] {
  const end = bytes.length - 4;
  if (
    bytes.length < 8 ||
    (end - 4) % 16 !== 0 ||
    bytes.readUInt32LE(0) !== originsMagic ||
    crc32c(bytes.subarray(0, end)) !== bytes.readUInt32LE(end)
  )
    throw new ImportError(
      'pg_logical/replorigin_checkpoint is damaged: remove it if no subscription or replication origin is in use',
    );
  const origins: [number, bigint][] = [];
  for (let at = 4; at < end; at += 16) origins.push([bytes.readUInt16LE(at), bytes.readBigUInt64LE(at + 8)]);
  return origins;
}

const originsMagic = 0x1257dade;
