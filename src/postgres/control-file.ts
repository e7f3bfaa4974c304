/**
 * pg_control of PostgreSQL 15 (ControlFileData in catalog/pg_control.h): 296 bytes of an 8192-byte file, little-endian
 * x86-64 layout. A view: fields not named here keep their bytes.
 */
import {crc32c} from '#runtime/crc.ts';
import {CheckPoint, checkPointSize} from '#postgres/checkpoint.ts';
import {type Lsn, readLsn64, writeLsn64} from '#postgres/lsn.ts';

export const controlFileSize = 8192;
export const controlFileDataSize = 296;
/** PG_CONTROL_VERSION of 13 … 16. */
export const controlFileVersion = 1300;
/** CATALOG_VERSION_NO of every release of PostgreSQL 15; betas had others. */
export const catalogVersion = 202209061;

const crcOffset = 288;

export const databaseState = {
  startup: 0,
  shutDown: 1,
  shutDownInRecovery: 2,
  shuttingDown: 3,
  inCrashRecovery: 4,
  inArchiveRecovery: 5,
  inProduction: 6,
} as const;

/** A file that is not pg_control of a version we know, or is damaged. */
export class ControlFileError extends Error {}

export class ControlFile {
  readonly bytes: Buffer;
  /** A view of the copy of the last checkpoint. */
  readonly checkPoint: CheckPoint;

  /** A view of 296 bytes, unchecked; see parseControlFile. */
  constructor(bytes: Buffer) {
    if (bytes.length < controlFileDataSize)
      throw new RangeError(`pg_control has ${controlFileDataSize} bytes, here are ${bytes.length}`);
    this.bytes = bytes.subarray(0, controlFileDataSize);
    this.checkPoint = new CheckPoint(this.bytes.subarray(40, 40 + checkPointSize));
  }

  get systemId(): bigint {
    return this.bytes.readBigUInt64LE(0);
  }
  set systemId(value: bigint) {
    this.bytes.writeBigUInt64LE(value, 0);
  }
  get controlVersion(): number {
    return this.bytes.readUInt32LE(8);
  }
  get catalogVersion(): number {
    return this.bytes.readUInt32LE(12);
  }
  /** See databaseState. */
  get state(): number {
    return this.bytes.readUInt32LE(16);
  }
  set state(value: number) {
    this.bytes.writeUInt32LE(value, 16);
  }
  /** Start of the last checkpoint record. */
  get checkPointLsn(): Lsn {
    return readLsn64(this.bytes, 32);
  }
  set checkPointLsn(value: Lsn) {
    writeLsn64(this.bytes, 32, value);
  }
  /** minRecoveryPoint, its timeline, backupStartPoint, backupEndPoint, backupEndRequired: all zero outside recovery and backup. */
  clearRecoveryPoints(): void {
    this.bytes.fill(0, 136, 172);
  }
  /** minRecoveryPoint and minRecoveryPointTLI: a standby lets readers in when it has replayed up to there. */
  setRecoveryPoint(value: Lsn, timeline: number): void {
    writeLsn64(this.bytes, 136, value);
    this.bytes.writeUInt32LE(timeline, 144);
  }
  /** 0 minimal, 1 replica, 2 logical. */
  get walLevel(): number {
    return this.bytes.readUInt32LE(172);
  }
  set walLevel(value: number) {
    this.bytes.writeUInt32LE(value, 172);
  }
  get walLogHints(): boolean {
    return this.bytes[176] !== 0;
  }
  set walLogHints(value: boolean) {
    this.bytes[176] = value ? 1 : 0;
  }
  get maxConnections(): number {
    return this.bytes.readUInt32LE(180);
  }
  set maxConnections(value: number) {
    this.bytes.writeUInt32LE(value, 180);
  }
  get maxWorkerProcesses(): number {
    return this.bytes.readUInt32LE(184);
  }
  set maxWorkerProcesses(value: number) {
    this.bytes.writeUInt32LE(value, 184);
  }
  get maxWalSenders(): number {
    return this.bytes.readUInt32LE(188);
  }
  set maxWalSenders(value: number) {
    this.bytes.writeUInt32LE(value, 188);
  }
  get maxPreparedTransactions(): number {
    return this.bytes.readUInt32LE(192);
  }
  set maxPreparedTransactions(value: number) {
    this.bytes.writeUInt32LE(value, 192);
  }
  get maxLocksPerTransaction(): number {
    return this.bytes.readUInt32LE(196);
  }
  set maxLocksPerTransaction(value: number) {
    this.bytes.writeUInt32LE(value, 196);
  }
  get trackCommitTimestamp(): boolean {
    return this.bytes[200] !== 0;
  }
  set trackCommitTimestamp(value: boolean) {
    this.bytes[200] = value ? 1 : 0;
  }
  get blockSize(): number {
    return this.bytes.readUInt32LE(216);
  }
  get walBlockSize(): number {
    return this.bytes.readUInt32LE(224);
  }
  get walSegmentSize(): number {
    return this.bytes.readUInt32LE(228);
  }
  /** 0 = no data checksums. */
  get dataChecksumVersion(): number {
    return this.bytes.readUInt32LE(252);
  }
  set dataChecksumVersion(value: number) {
    this.bytes.writeUInt32LE(value, 252);
  }

  clone(): ControlFile {
    return new ControlFile(Buffer.from(this.bytes));
  }

  /** The whole file, 8192 bytes, with its checksum. */
  encode(): Buffer {
    const file = Buffer.alloc(controlFileSize);
    this.bytes.copy(file);
    file.writeUInt32LE(crc32c(file.subarray(0, crcOffset)), crcOffset);
    return file;
  }
}

/** Reads a copy of global/pg_control. Throws ControlFileError that says what is wrong with it. */
export function parseControlFile(file: Buffer): ControlFile {
  if (file.length < controlFileDataSize) throw new ControlFileError(`pg_control has only ${file.length} bytes`);
  const control = new ControlFile(Buffer.from(file.subarray(0, controlFileDataSize)));
  if (control.controlVersion !== controlFileVersion)
    throw new ControlFileError(
      `pg_control is of version ${control.controlVersion}, expected ${controlFileVersion}: only clusters of PostgreSQL 15 on little-endian machines are supported`,
    );
  const sum = crc32c(control.bytes.subarray(0, crcOffset));
  const stored = control.bytes.readUInt32LE(crcOffset);
  if (sum !== stored)
    throw new ControlFileError(
      `pg_control is damaged: checksum ${sum.toString(16)}, the file says ${stored.toString(16)}`,
    );
  return control;
}
