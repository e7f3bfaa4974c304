/**
 * The CheckPoint struct of PostgreSQL 15 (catalog/pg_control.h), 88 bytes: main data of checkpoint records, and a part of
 * pg_control. A view: fields are read from and written into `bytes`, so nothing unknown is lost.
 */
import {type Lsn, readLsn64, writeLsn64} from '#postgres/lsn.ts';

export const checkPointSize = 88;
/** Lowest transaction id of a user transaction; 0 is invalid, 1 bootstrap, 2 frozen. */
export const firstNormalXid = 3;

const twoPow32 = 4294967296;

export class CheckPoint {
  readonly bytes: Buffer;

  /** A view of 88 bytes, not a copy. Throws a RangeError when there are fewer. */
  constructor(bytes: Buffer = Buffer.alloc(checkPointSize)) {
    if (bytes.length < checkPointSize)
      throw new RangeError(`a CheckPoint has ${checkPointSize} bytes, here are ${bytes.length}`);
    this.bytes = bytes.subarray(0, checkPointSize);
  }

  /** Where redo starts; the record's own start in a shutdown checkpoint. */
  get redoLsn(): Lsn {
    return readLsn64(this.bytes, 0);
  }
  set redoLsn(value: Lsn) {
    writeLsn64(this.bytes, 0, value);
  }
  get timeline(): number {
    return this.bytes.readUInt32LE(8);
  }
  set timeline(value: number) {
    this.bytes.writeUInt32LE(value, 8);
  }
  get previousTimeline(): number {
    return this.bytes.readUInt32LE(12);
  }
  set previousTimeline(value: number) {
    this.bytes.writeUInt32LE(value, 12);
  }
  get fullPageWrites(): boolean {
    return this.bytes[16] !== 0;
  }
  set fullPageWrites(value: boolean) {
    this.bytes[16] = value ? 1 : 0;
  }
  /** FullTransactionId: epoch · 2^32 + xid. */
  get nextXid(): number {
    return this.bytes.readUInt32LE(24) + this.bytes.readUInt32LE(28) * twoPow32;
  }
  set nextXid(value: number) {
    this.bytes.writeUInt32LE(value % twoPow32, 24);
    // A corrupt record may hold any 64 bits; rounded to a double they can reach 2^64.
    this.bytes.writeUInt32LE(Math.floor(value / twoPow32) % twoPow32, 28);
  }
  get nextOid(): number {
    return this.bytes.readUInt32LE(32);
  }
  set nextOid(value: number) {
    this.bytes.writeUInt32LE(value, 32);
  }
  get nextMulti(): number {
    return this.bytes.readUInt32LE(36);
  }
  set nextMulti(value: number) {
    this.bytes.writeUInt32LE(value, 36);
  }
  get nextMultiOffset(): number {
    return this.bytes.readUInt32LE(40);
  }
  set nextMultiOffset(value: number) {
    this.bytes.writeUInt32LE(value, 40);
  }
  get oldestXid(): number {
    return this.bytes.readUInt32LE(44);
  }
  set oldestXid(value: number) {
    this.bytes.writeUInt32LE(value, 44);
  }
  get oldestXidDb(): number {
    return this.bytes.readUInt32LE(48);
  }
  set oldestXidDb(value: number) {
    this.bytes.writeUInt32LE(value, 48);
  }
  get oldestMulti(): number {
    return this.bytes.readUInt32LE(52);
  }
  set oldestMulti(value: number) {
    this.bytes.writeUInt32LE(value, 52);
  }
  get oldestMultiDb(): number {
    return this.bytes.readUInt32LE(56);
  }
  set oldestMultiDb(value: number) {
    this.bytes.writeUInt32LE(value, 56);
  }
  /** Seconds since 1970-01-01 UTC. */
  get timeSeconds(): number {
    return this.bytes.readUInt32LE(64) + this.bytes.readInt32LE(68) * twoPow32;
  }
  set timeSeconds(value: number) {
    const high = Math.floor(value / twoPow32);
    this.bytes.writeUInt32LE(value - high * twoPow32, 64);
    this.bytes.writeInt32LE(high, 68);
  }
  get oldestCommitTsXid(): number {
    return this.bytes.readUInt32LE(72);
  }
  set oldestCommitTsXid(value: number) {
    this.bytes.writeUInt32LE(value, 72);
  }
  get newestCommitTsXid(): number {
    return this.bytes.readUInt32LE(76);
  }
  set newestCommitTsXid(value: number) {
    this.bytes.writeUInt32LE(value, 76);
  }
  get oldestActiveXid(): number {
    return this.bytes.readUInt32LE(80);
  }
  set oldestActiveXid(value: number) {
    this.bytes.writeUInt32LE(value, 80);
  }

  clone(): CheckPoint {
    return new CheckPoint(Buffer.from(this.bytes));
  }
}

/** Whether 32-bit xid a comes before b, modulo 2^32 (TransactionIdPrecedes); ids below 3 come before all others. */
export function xidPrecedes(a: number, b: number): boolean {
  if (a < firstNormalXid || b < firstNormalXid) return a < b;
  return ((a - b) | 0) < 0;
}

/** Modulo comparison without special ids: multixact ids and offsets. */
export function precedesModulo(a: number, b: number): boolean {
  return ((a - b) | 0) < 0;
}
