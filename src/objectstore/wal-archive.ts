/**
 * One timeline's WAL in the object store. Only committed WAL is ever written, so any two writers write the same bytes.
 *
 *   wal/<tenant>/<timeline>/<segment file name>                              a whole segment
 *   wal/<tenant>/<timeline>/<segment file name>.<end LSN>.<term>.partial     its first part, up to the end LSN
 *   wal/<tenant>/<timeline>/term-<term>.json                                 what the timeline is, and its term history
 *   wal/<tenant>/<timeline>/trimmed-<LSN>.json                               WAL below is not kept any more
 *
 * LSN and term are 16 upper-hex digits. An object of WAL is the raw bytes and a footer of 40 bytes, little-endian: magic
 * "PGDWALSG", version u32, CRC-32C of the bytes u32, start LSN u64, end LSN u64, 0 u32, CRC-32C of the footer before it u32.
 * The bytes begin where the segment begins, or where the timeline begins when that is later.
 */
import {type Lsn, formatLsn, lsnToHex, parseLsn, readLsn64, writeLsn64} from '#postgres/lsn.ts';
import {parseSegmentFileName, segmentFileName, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {assert} from '#runtime/assert.ts';
import {crc32c} from '#runtime/crc.ts';
import {failpoint} from '#runtime/failpoint.ts';
import {type ObjectStore, ObjectStoreError} from './object-store.ts';

export const walFooterBytes = 40;
const footerMagic = Buffer.from('PGDWALSG', 'latin1');
const footerVersion = 2;
const manifestVersion = 1;
const partialPattern = /^([0-9A-F]{24})\.([0-9A-F]{16})\.([0-9A-F]{16})\.partial$/;
const trimPattern = /^trimmed-([0-9A-F]{16})\.json$/;
const manifestPattern = /^term-([0-9A-F]{16})\.json$/;

/** The archive holds something else than it should: damage, or WAL of two histories. Nothing may be trimmed on its word. */
export class WalArchiveError extends Error {}

/** A stretch of WAL that is, or shall be, one object. */
export interface WalPiece {
  readonly segment: number;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  /** Undefined: the whole segment. Else the term of the last record in it. */
  readonly partialTerm: number | undefined;
}

/** What a safekeeper needs to begin a timeline again from nothing but the archive. */
export interface WalManifest {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly systemId: string;
  readonly pgVersion: number;
  readonly startLsn: Lsn;
  /** Of the committed WAL, up to and with the term of the manifest's name. */
  readonly history: readonly {readonly term: number; readonly lsn: Lsn}[];
}

export interface WalArchiveOptions {
  readonly store: ObjectStore;
  readonly tenantId: string;
  readonly timelineId: string;
  readonly segmentSize?: number;
}

export class WalArchive {
  readonly prefix: string;
  readonly #store: ObjectStore;
  readonly #segmentSize: number;
  readonly #where: string;
  /** The last listing, newest pieces included by ourselves. */
  #pieces: WalPiece[] | undefined;

  constructor(options: WalArchiveOptions) {
    this.#store = options.store;
    this.#segmentSize = options.segmentSize ?? walSegmentSizeDefault;
    this.prefix = `wal/${options.tenantId}/${options.timelineId}/`;
    this.#where = `WAL archive of tenant ${options.tenantId} timeline ${options.timelineId}`;
  }

  key(piece: Pick<WalPiece, 'segment' | 'endLsn' | 'partialTerm'>): string {
    const name = segmentFileName(1, piece.segment, this.#segmentSize);
    return piece.partialTerm === undefined
      ? `${this.prefix}${name}`
      : `${this.prefix}${name}.${lsnToHex(piece.endLsn)}.${lsnToHex(piece.partialTerm as Lsn)}.partial`;
  }

  /** All pieces in order: by segment, a whole one after its parts. Objects of other names are passed over. */
  async list(): Promise<readonly WalPiece[]> {
    const pieces: WalPiece[] = [];
    for (const {key, size} of await this.#store.list(this.prefix)) {
      const piece = this.#parse(key.slice(this.prefix.length), size);
      if (piece !== undefined) pieces.push(piece);
    }
    pieces.sort((a, b) => a.segment - b.segment || a.endLsn - b.endLsn);
    this.#pieces = pieces;
    return pieces;
  }

  /** Up to where WAL is there without a gap from `fromLsn` on. */
  async endLsn(fromLsn: Lsn): Promise<Lsn> {
    let end = fromLsn;
    for (const piece of await this.list())
      if (piece.startLsn <= end && piece.endLsn > end) end = piece.endLsn;
      else if (piece.startLsn > end) break;
    return end;
  }

  /**
   * Makes the piece durable in the store and sure: the object was found there afterwards, with these bytes. `object` holds
   * the piece's bytes and room for the footer behind them. An object that is already there is as good when it holds the same.
   */
  async put(piece: WalPiece, object: Buffer): Promise<void> {
    const length = piece.endLsn - piece.startLsn;
    assert(object.length === length + walFooterBytes, 'a piece of WAL is as long as its LSNs say');
    const crc = crc32c(object.subarray(0, length));
    const key = this.key(piece);
    encodeFooter(object.subarray(length), key, piece, crc);
    try {
      await this.#store.put(key, object, {ifNoneMatch: '*'});
    } catch (error) {
      if (!(error instanceof ObjectStoreError) || error.code !== 'exists') throw error;
    }
    if (!(await this.verify(piece, crc)))
      throw new ObjectStoreError('unavailable', key, 'was put, but is not there; it will be put again');
    this.#learn(piece);
  }

  /**
   * True: the object is there, whole, and says that it holds these LSNs (and these bytes, when their checksum is given).
   * False: it is not there, and was not trimmed. Throws WalArchiveError when it holds something else.
   */
  async verify(piece: WalPiece, crc?: number): Promise<boolean> {
    const key = this.key(piece);
    const head = await this.#store.head(key);
    // What was trimmed had been there, and nobody needs it any more.
    if (head === undefined) return piece.endLsn <= (await this.trimmedLsn());
    const size = piece.endLsn - piece.startLsn + walFooterBytes;
    if (head.size !== size) throw this.#wrong(key, `has ${head.size} bytes, not ${size}`);
    const footer = this.#decodeFooter(key, await this.#store.getRange(key, size - walFooterBytes, walFooterBytes));
    if (footer.startLsn !== piece.startLsn || footer.endLsn !== piece.endLsn)
      throw this.#wrong(key, `says it holds ${formatLsn(footer.startLsn)} to ${formatLsn(footer.endLsn)}`);
    if (crc !== undefined && footer.crc !== crc)
      throw this.#wrong(key, `holds other WAL than this node: checksum ${footer.crc}, here ${crc}`);
    return true;
  }

  /** The bytes of a piece, checked against its checksum. */
  async get(piece: WalPiece): Promise<Buffer> {
    const key = this.key(piece);
    const object = await this.#store.get(key);
    const length = piece.endLsn - piece.startLsn;
    if (object.length !== length + walFooterBytes) throw this.#wrong(key, `has ${object.length} bytes`);
    const footer = this.#decodeFooter(key, object.subarray(length));
    const bytes = object.subarray(0, length);
    if (crc32c(bytes) !== footer.crc) throw this.#wrong(key, 'fails its checksum');
    return bytes;
  }

  /**
   * Up to `lengthMax` bytes from `lsn` on, fewer at the end of an object; none when the archive ends there. Ranged: the
   * checksum of the object is not looked at, records have their own.
   */
  async read(lsn: Lsn, lengthMax: number): Promise<Buffer> {
    for (const fresh of [false, true]) {
      if (fresh || this.#pieces === undefined) await this.list();
      const piece = this.#covering(lsn);
      if (piece === undefined) continue;
      try {
        return await this.#store.getRange(
          this.key(piece),
          lsn - piece.startLsn,
          Math.min(lengthMax, piece.endLsn - lsn),
        );
      } catch (error) {
        // A part whose segment is whole by now may be gone.
        if (fresh || !(error instanceof ObjectStoreError) || error.code !== 'not-found') throw error;
      }
    }
    return Buffer.alloc(0);
  }

  /** Removes parts that a longer part or the whole segment, both found here, has made needless. */
  async forgetParts(): Promise<void> {
    const pieces = await this.list();
    const longest = new Map<number, WalPiece>();
    for (const piece of pieces) longest.set(piece.segment, piece); // sorted: the last one is the longest
    const keys = pieces
      .filter((piece) => {
        const best = longest.get(piece.segment)!;
        return piece.partialTerm !== undefined && piece !== best && best.startLsn <= piece.startLsn;
      })
      .map((piece) => this.key(piece));
    if (keys.length > 0) {
      failpoint('safekeeper.forget-parts.before');
      await this.#store.delete(keys);
      failpoint('safekeeper.forget-parts.after');
    }
    this.#pieces = undefined;
  }

  /**
   * Nothing beyond `lsn` is left: the piece it lies in is put again up to there, then all longer ones go. For a timeline that
   * goes on from `lsn` with other WAL, because what followed is lost.
   */
  async cutAt(lsn: Lsn, term: number): Promise<void> {
    const pieces = await this.list();
    const longer = pieces.filter((piece) => piece.endLsn > lsn);
    const across = longer.find((piece) => piece.startLsn < lsn);
    if (across !== undefined) {
      const bytes = (await this.get(across)).subarray(0, lsn - across.startLsn);
      const piece = {segment: across.segment, startLsn: across.startLsn, endLsn: lsn, partialTerm: term};
      failpoint('safekeeper.archive-cut-put.before');
      await this.put(piece, Buffer.concat([bytes, Buffer.alloc(walFooterBytes)]));
      failpoint('safekeeper.archive-cut-put.after');
    }
    await this.#store.delete(longer.map((piece) => this.key(piece)));
    failpoint('safekeeper.archive-cut.after');
    this.#pieces = undefined;
  }

  /** WAL below was given up by trim(); 0: none was. */
  async trimmedLsn(): Promise<Lsn> {
    const keys = (await this.#store.list(`${this.prefix}trimmed-`)).map(({key}) => key);
    let trimmed = 0;
    for (const key of keys) {
      const name = trimPattern.exec(key.slice(this.prefix.length));
      if (name === null) continue;
      let bytes: Buffer;
      try {
        bytes = await this.#store.get(key);
      } catch (error) {
        if (error instanceof ObjectStoreError && error.code === 'not-found') continue; // a later one took its place
        throw error;
      }
      const at = parseInt(name[1]!, 16) as Lsn;
      if (!bytes.equals(this.#trimMark(at))) throw this.#wrong(key, 'is not the mark that its name says');
      trimmed = Math.max(trimmed, at);
    }
    return trimmed as Lsn;
  }

  /** Where the timeline's WAL begins, as far as it is kept. */
  async firstLsn(manifest: WalManifest): Promise<Lsn> {
    return Math.max(manifest.startLsn, await this.trimmedLsn()) as Lsn;
  }

  /**
   * Gives up WAL below `lsn`, the start of a segment: first a mark says so, then the objects go. May be repeated, and by any number
   * at once; what an interrupted one has left goes with the next. Answers how many objects of WAL went.
   */
  async trim(lsn: Lsn): Promise<number> {
    assert(lsn % this.#segmentSize === 0, 'WAL is trimmed by whole segments');
    const before = await this.trimmedLsn();
    const below = Math.max(lsn, before) as Lsn;
    const old = (await this.list()).filter((piece) => piece.endLsn <= below);
    if (below > before) {
      if (old.length === 0) return 0;
      failpoint('safekeeper.trim-mark.before');
      try {
        await this.#store.put(this.#trimKey(below), this.#trimMark(below), {ifNoneMatch: '*'});
      } catch (error) {
        if (!(error instanceof ObjectStoreError) || error.code !== 'exists') throw error;
      }
      failpoint('safekeeper.trim-mark.after');
    }
    await this.#store.delete(old.map((piece) => this.key(piece)));
    const marks = (await this.#store.list(`${this.prefix}trimmed-`)).map(({key}) => key);
    await this.#store.delete(marks.filter((key) => key < this.#trimKey(below)));
    failpoint('safekeeper.trim.after');
    this.#pieces = undefined;
    return old.length;
  }

  #trimKey(lsn: Lsn): string {
    return `${this.prefix}trimmed-${lsnToHex(lsn)}.json`;
  }

  #trimMark(lsn: Lsn): Buffer {
    const body = {version: 1, prefix: this.prefix, trimmedLsn: formatLsn(lsn)};
    return Buffer.from(JSON.stringify({...body, crc: crc32c(Buffer.from(JSON.stringify(body)))}));
  }

  /** Everything of the timeline. */
  async deleteAll(): Promise<void> {
    const keys = (await this.#store.list(this.prefix)).map(({key}) => key);
    failpoint('safekeeper.archive-delete.before');
    if (keys.length > 0) await this.#store.delete(keys);
    failpoint('safekeeper.archive-delete.after');
    this.#pieces = undefined;
  }

  async putManifest(manifest: WalManifest): Promise<void> {
    const term = manifest.history.at(-1)!.term;
    const key = `${this.prefix}term-${lsnToHex(term as Lsn)}.json`;
    const bytes = encodeManifest(manifest);
    try {
      await this.#store.put(key, bytes, {ifNoneMatch: '*'});
    } catch (error) {
      if (!(error instanceof ObjectStoreError) || error.code !== 'exists') throw error;
    }
    const found = await this.#store.get(key);
    if (!found.equals(bytes)) throw this.#wrong(key, 'tells another history of this timeline than this node has');
  }

  /** The one of the highest term; undefined: nothing was ever archived. */
  async manifest(): Promise<WalManifest | undefined> {
    const keys = (await this.#store.list(`${this.prefix}term-`)).map(({key}) => key);
    const newest = keys.filter((key) => manifestPattern.test(key.slice(this.prefix.length))).at(-1);
    if (newest === undefined) return undefined;
    return this.#decodeManifest(newest, await this.#store.get(newest));
  }

  #covering(lsn: Lsn): WalPiece | undefined {
    let best: WalPiece | undefined;
    for (const piece of this.#pieces ?? [])
      if (piece.startLsn <= lsn && lsn < piece.endLsn && (best === undefined || piece.endLsn > best.endLsn))
        best = piece;
    return best;
  }

  #learn(piece: WalPiece): void {
    if (
      this.#pieces !== undefined &&
      !this.#pieces.some((p) => p.segment === piece.segment && p.endLsn >= piece.endLsn)
    )
      this.#pieces.push(piece);
  }

  #parse(name: string, size: number): WalPiece | undefined {
    const length = size - walFooterBytes;
    const partial = partialPattern.exec(name);
    const parsed = parseSegmentFileName(partial === null ? name : partial[1]!, this.#segmentSize);
    if (parsed === undefined || length <= 0) return undefined;
    const {segment} = parsed;
    const endLsn = partial === null ? (segment + 1) * this.#segmentSize : parseInt(partial[2]!, 16);
    const startLsn = endLsn - length;
    if (startLsn < segment * this.#segmentSize || !Number.isSafeInteger(endLsn)) return undefined;
    return {
      segment,
      startLsn: startLsn as Lsn,
      endLsn: endLsn as Lsn,
      partialTerm: partial === null ? undefined : parseInt(partial[3]!, 16),
    };
  }

  #decodeFooter(key: string, bytes: Buffer): {crc: number; startLsn: Lsn; endLsn: Lsn} {
    if (
      !bytes.subarray(0, 8).equals(footerMagic) ||
      crc32c(bytes.subarray(0, 36), crc32c(Buffer.from(key, 'latin1'))) !== bytes.readUInt32LE(36)
    )
      throw this.#wrong(key, 'has a damaged footer');
    const version = bytes.readUInt32LE(8);
    if (version !== footerVersion)
      throw this.#wrong(key, `has version ${version}, this program reads ${footerVersion}`);
    return {crc: bytes.readUInt32LE(12), startLsn: readLsn64(bytes, 16), endLsn: readLsn64(bytes, 24)};
  }

  #decodeManifest(key: string, bytes: Buffer): WalManifest {
    try {
      const m = JSON.parse(bytes.toString('utf8')) as Record<string, unknown>;
      const {crc, ...body} = m;
      if (crc !== crc32c(Buffer.from(JSON.stringify(body)))) throw new Error('fails its checksum');
      if (m['version'] !== manifestVersion) throw new Error(`has version ${String(m['version'])}`);
      if (this.prefix !== `wal/${String(m['tenantId'])}/${String(m['timelineId'])}/`)
        throw new Error('is that of another timeline');
      return {
        tenantId: String(m['tenantId']),
        timelineId: String(m['timelineId']),
        systemId: String(m['systemId']),
        pgVersion: Number(m['pgVersion']),
        startLsn: parseLsn(String(m['startLsn'])),
        history: (m['history'] as {term: number; lsn: string}[]).map(({term, lsn}) => ({term, lsn: parseLsn(lsn)})),
      };
    } catch (error) {
      throw this.#wrong(key, error instanceof Error ? error.message : String(error));
    }
  }

  #wrong(key: string, what: string): WalArchiveError {
    return new WalArchiveError(
      `${this.#where}: object ${key} ${what}. Do not trim or delete WAL of it; look with \`pagoda wal fsck\``,
    );
  }
}

/** The footer's own checksum covers the object's name: an object under another's name is found. */
function encodeFooter(footer: Buffer, key: string, piece: WalPiece, crc: number): void {
  footer.fill(0);
  footerMagic.copy(footer);
  footer.writeUInt32LE(footerVersion, 8);
  footer.writeUInt32LE(crc, 12);
  writeLsn64(footer, 16, piece.startLsn);
  writeLsn64(footer, 24, piece.endLsn);
  footer.writeUInt32LE(crc32c(footer.subarray(0, 36), crc32c(Buffer.from(key, 'latin1'))), 36);
}

function encodeManifest(manifest: WalManifest): Buffer {
  const body = {
    version: manifestVersion,
    tenantId: manifest.tenantId,
    timelineId: manifest.timelineId,
    systemId: manifest.systemId,
    pgVersion: manifest.pgVersion,
    startLsn: formatLsn(manifest.startLsn),
    history: manifest.history.map(({term, lsn}) => ({term, lsn: formatLsn(lsn)})),
  };
  return Buffer.from(JSON.stringify({...body, crc: crc32c(Buffer.from(JSON.stringify(body)))}));
}
