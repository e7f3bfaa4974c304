/** Where `pagoda wal` reads WAL: a folder of segment files, a safekeeper's folder of a timeline, the archive. Nothing is written. */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {parseSegmentFileName, segmentFileName, segmentStart, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {type Disk, type DiskFile, joinPath} from '#runtime/disk.ts';
import type {WalArchive} from '#objectstore/wal-archive.ts';
import type {AcceptorState} from '#safekeeper/acceptor.ts';
import {controlFileName, decodeControlFile} from '#safekeeper/control-file.ts';
import {readFlushMark} from '#safekeeper/flush-mark.ts';
import {firstRecordStart} from '#safekeeper/record-start.ts';
import {chain} from '#safekeeper/restore.ts';

export interface WalSource {
  /** For messages. */
  readonly name: string;
  /** WAL is here from this position on. */
  readonly startLsn: Lsn;
  /** Up to here at most; what is behind the last record may be zeros. */
  readonly endLsn: Lsn;
  /** Fewer bytes than asked at the end of a file; none where there is nothing. */
  read(lsn: Lsn, lengthMax: number): Promise<Buffer>;
  close(): void;
}

/** A folder of segment files, such as pg_wal, or what a safekeeper has of a timeline. */
export class FolderSource implements WalSource {
  readonly name: string;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  /** When the folder is a safekeeper's. */
  readonly state: AcceptorState | undefined;
  /** The safekeeper had WAL up to here, by its flush mark. */
  readonly markLsn: Lsn | undefined;
  readonly #disk: Disk;
  readonly #open = new Map<number, DiskFile>();

  /** Undefined: there is neither a segment nor a control file. Throws ControlFileError. */
  static find(disk: Disk, folder: string): FolderSource | undefined {
    const segments = disk
      .list(folder)
      .map((name) => parseSegmentFileName(name, walSegmentSizeDefault)?.segment)
      .filter((n) => n !== undefined)
      .sort((a, b) => a - b);
    const controlPath = joinPath(folder, controlFileName);
    const state = disk.exists(controlPath) ? decodeControlFile(disk.readFile(controlPath), controlPath) : undefined;
    return segments.length === 0 && state === undefined ? undefined : new FolderSource(disk, folder, segments, state);
  }

  private constructor(disk: Disk, folder: string, segments: readonly number[], state: AcceptorState | undefined) {
    this.#disk = disk;
    this.name = folder;
    this.state = state;
    this.markLsn = state === undefined ? undefined : readFlushMark({...state, disk, directory: folder});
    const [first] = segments;
    this.startLsn = state?.localStartLsn ?? ((first! * walSegmentSizeDefault) as Lsn);
    // A gap ends it: recycled files of Postgres carry names of the future.
    let last = first;
    for (const n of segments) if (n === last! + 1) last = n;
    this.endLsn = (
      last === undefined ? this.startLsn : last * walSegmentSizeDefault + (disk.stat(this.#path(last))?.size ?? 0)
    ) as Lsn;
  }

  async read(lsn: Lsn, lengthMax: number): Promise<Buffer> {
    if (lsn < this.startLsn) return Buffer.alloc(0);
    const number = Math.floor(lsn / walSegmentSizeDefault);
    let file = this.#open.get(number);
    if (file === undefined) {
      const path = this.#path(number);
      if (!this.#disk.exists(path)) return Buffer.alloc(0);
      this.close();
      file = this.#disk.open(path, 'read');
      this.#open.set(number, file);
    }
    const offset = lsn % walSegmentSizeDefault;
    const bytes = Buffer.allocUnsafe(Math.min(lengthMax, walSegmentSizeDefault - offset));
    return bytes.subarray(0, file.read(bytes, offset));
  }

  close(): void {
    for (const file of this.#open.values()) file.close();
    this.#open.clear();
  }

  #path(segment: number): string {
    return joinPath(this.name, segmentFileName(1, segment, walSegmentSizeDefault));
  }
}

export class ArchiveSource implements WalSource {
  readonly name: string;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  readonly archive: WalArchive;

  /** Undefined: nothing of the timeline is archived. Throws WalArchiveError. */
  static async find(archive: WalArchive): Promise<ArchiveSource | undefined> {
    const manifest = await archive.manifest();
    if (manifest === undefined) return undefined;
    const firstLsn = await archive.firstLsn(manifest);
    const endLsn = chain(await archive.list(), firstLsn).at(-1)?.endLsn ?? firstLsn;
    return new ArchiveSource(archive, firstLsn, endLsn);
  }

  private constructor(archive: WalArchive, startLsn: Lsn, endLsn: Lsn) {
    this.archive = archive;
    this.name = `archive ${archive.prefix}`;
    this.startLsn = startLsn;
    this.endLsn = endLsn;
  }

  async read(lsn: Lsn, lengthMax: number): Promise<Buffer> {
    return lsn < this.startLsn || lsn >= this.endLsn ? Buffer.alloc(0) : await this.archive.read(lsn, lengthMax);
  }
  close(): void {}
}

/** Several sources of one timeline as one: each byte from the first that has it. */
export class JoinedSource implements WalSource {
  readonly name: string;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  readonly #sources: readonly WalSource[];

  constructor(name: string, sources: readonly WalSource[], endLsn?: Lsn) {
    this.name = name;
    this.#sources = sources;
    this.startLsn = Math.min(...sources.map((s) => s.startLsn)) as Lsn;
    this.endLsn = Math.min(endLsn ?? Infinity, Math.max(...sources.map((s) => s.endLsn))) as Lsn;
  }

  async read(lsn: Lsn, lengthMax: number): Promise<Buffer> {
    for (const source of this.#sources) {
      if (lsn < source.startLsn || lsn >= source.endLsn) continue;
      const bytes = await source.read(lsn, Math.min(lengthMax, this.endLsn - lsn));
      if (bytes.length > 0) return bytes;
    }
    return Buffer.alloc(0);
  }
  close(): void {
    for (const source of this.#sources) source.close();
  }
}

/**
 * Where the first record at or after `lsn` can be looked for: a position where a record starts. `timelineStartLsn` is one
 * too. Throws when the source has no start of a record before its end.
 */
export async function findRecordStart(source: WalSource, lsn: Lsn, isStart: boolean): Promise<Lsn> {
  if (isStart && lsn % walSegmentSizeDefault !== 0) return lsn;
  for (let at = segmentStart(lsn); at < source.endLsn; at = (at + walSegmentSizeDefault) as Lsn) {
    if (at < source.startLsn) return source.startLsn;
    const found = firstRecordStart(await readAll(source, at, walSegmentSizeDefault), at);
    if (found !== undefined) return found;
  }
  throw new Error(`${source.name}: no record starts between ${formatLsn(lsn)} and ${formatLsn(source.endLsn)}`);
}

async function readAll(source: WalSource, lsn: Lsn, length: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  let have = 0;
  while (have < length) {
    const part = await source.read((lsn + have) as Lsn, length - have);
    if (part.length === 0) break;
    parts.push(part);
    have += part.length;
  }
  return Buffer.concat(parts);
}
