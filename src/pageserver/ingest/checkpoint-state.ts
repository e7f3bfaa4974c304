/**
 * What a basebackup needs to write pg_control and its checkpoint, as of the last ingested record: the CheckPoint struct, kept
 * current from the WAL, the cluster-wide parameters of pg_control, and replication-origin progress. Stored under one key,
 * a new value whenever it changed.
 *
 * The next transaction id moves with nearly every record. It is rounded up to a multiple of 128, so that a value is written
 * once per 128 transactions; a compute that starts from it skips at most 127 ids. 128 divides the ids of a pg_xact page, so the
 * rounded id never lies on a page that does not exist yet (at most it is the first of one). Other counters are exact.
 */
import {firstNormalXid, precedesModulo, xidPrecedes} from '#postgres/checkpoint.ts';
import {ControlFile, controlFileDataSize} from '#postgres/control-file.ts';

/** A stored state that cannot be read. */
export class CheckpointStateError extends Error {}

const formatVersion = 1;
const nextXidStep = 128;
const twoPow32 = 4294967296;
const noPage = 0xffffffff;
const originsMax = 65535;

export class CheckpointState {
  /** Its checkPoint is the state; its own state, time and positions are those of the import. */
  readonly control: ControlFile;
  /** Replication origin → remote LSN that was applied. Of another system, and users may set it: any 64 bits. */
  readonly origins: Map<number, bigint>;
  /** Multixact offsets page that a CREATE_ID record created ahead of its ZERO_OFF_PAGE record (wal-redo.md 5.3). */
  preInitializedOffsetsPage: number | undefined;
  /** Set by every change; takeChange() resets it. */
  #changed = false;
  /** The last one that advanceNextXid was told. The next id is never moved back below it. */
  #xid = 0;

  constructor(control: ControlFile) {
    this.control = control;
    this.origins = new Map();
  }

  /** wal_log_hints or data checksums: Heap2 VISIBLE then sets the heap page's LSN (RedoEnvironment). */
  get walLogHints(): boolean {
    return this.control.walLogHints || this.control.dataChecksumVersion !== 0;
  }

  /** Low half of the next transaction id. */
  get nextXid32(): number {
    return this.control.checkPoint.nextXid % twoPow32;
  }

  markChanged(): void {
    this.#changed = true;
  }

  /** Moves the next transaction id beyond `xid` (AdvanceNextFullTransactionIdPastXid, rounded up). */
  advanceNextXid(xid: number): void {
    if (xid === this.#xid) return; // most records are of the transaction of the one before
    this.#xid = xid;
    const checkPoint = this.control.checkPoint;
    const next = checkPoint.nextXid;
    const next32 = next % twoPow32;
    if (xidPrecedes(xid, next32)) return;
    // Ids in use span less than half the circle, so a smaller number means the next epoch.
    let full = next - next32 + xid + 1;
    if (xid < next32) full += twoPow32;
    full = Math.ceil(full / nextXidStep) * nextXidStep;
    if (full % twoPow32 < firstNormalXid) full += firstNormalXid;
    checkPoint.nextXid = full;
    this.#changed = true;
  }

  /** MultiXactAdvanceNextMXact. */
  advanceNextMulti(multi: number, offset: number): void {
    const checkPoint = this.control.checkPoint;
    if (precedesModulo(checkPoint.nextMulti, multi)) {
      checkPoint.nextMulti = multi;
      this.#changed = true;
    }
    if (precedesModulo(checkPoint.nextMultiOffset, offset)) {
      checkPoint.nextMultiOffset = offset;
      this.#changed = true;
    }
  }

  advanceOldestMulti(multi: number, database: number): void {
    const checkPoint = this.control.checkPoint;
    if (!precedesModulo(checkPoint.oldestMulti, multi)) return;
    checkPoint.oldestMulti = multi;
    checkPoint.oldestMultiDb = database;
    this.#changed = true;
  }

  advanceOldestXid(xid: number, database: number): void {
    const checkPoint = this.control.checkPoint;
    if (!xidPrecedes(checkPoint.oldestXid, xid)) return;
    checkPoint.oldestXid = xid;
    checkPoint.oldestXidDb = database;
    this.#changed = true;
  }

  /** replorigin_advance: only forward unless forced. */
  advanceOrigin(origin: number, remoteLsn: bigint, force: boolean): void {
    const known = this.origins.get(origin);
    if (known !== undefined && known >= remoteLsn && !force) return;
    if (known === undefined && this.origins.size >= originsMax) return;
    this.origins.set(origin, remoteLsn);
    this.#changed = true;
  }

  dropOrigin(origin: number): void {
    if (this.origins.delete(origin)) this.#changed = true;
  }

  /** The encoded state if it changed since the last call. */
  takeChange(): Buffer | undefined {
    if (!this.#changed) return undefined;
    this.#changed = false;
    return this.encode();
  }

  /** u8 version, 296 bytes of pg_control, u32 pre-initialised page or all ones, u16 origins, each u16 id and u64 LSN. */
  encode(): Buffer {
    const bytes = Buffer.alloc(1 + controlFileDataSize + 6 + this.origins.size * 10);
    bytes[0] = formatVersion;
    this.control.bytes.copy(bytes, 1);
    let at = 1 + controlFileDataSize;
    bytes.writeUInt32LE(this.preInitializedOffsetsPage ?? noPage, at);
    bytes.writeUInt16LE(this.origins.size, at + 4);
    at += 6;
    for (const [origin, remoteLsn] of this.origins) {
      bytes.writeUInt16LE(origin, at);
      bytes.writeBigUInt64LE(remoteLsn, at + 2);
      at += 10;
    }
    return bytes;
  }

  /** Throws CheckpointStateError. */
  static decode(bytes: Buffer): CheckpointState {
    const fixed = 1 + controlFileDataSize + 6;
    if (bytes.length < fixed)
      throw new CheckpointStateError(`checkpoint state of ${bytes.length} bytes, at least ${fixed} expected`);
    if (bytes[0] !== formatVersion)
      throw new CheckpointStateError(`checkpoint state of format ${bytes[0]}, this program knows ${formatVersion}`);
    const state = new CheckpointState(new ControlFile(Buffer.from(bytes.subarray(1, 1 + controlFileDataSize))));
    let at = 1 + controlFileDataSize;
    const page = bytes.readUInt32LE(at);
    if (page !== noPage) state.preInitializedOffsetsPage = page;
    const count = bytes.readUInt16LE(at + 4);
    at += 6;
    if (bytes.length !== at + count * 10)
      throw new CheckpointStateError(`checkpoint state of ${bytes.length} bytes does not hold ${count} origins`);
    for (let i = 0; i < count; i++, at += 10) state.origins.set(bytes.readUInt16LE(at), bytes.readBigUInt64LE(at + 2));
    return state;
  }
}
