/**
 * How far a timeline's WAL was promised to be durable on this node: one small file beside it, overwritten whenever flushLsn
 * advances, before anybody is told. So the next start can tell rot from a torn tail: where WAL ends before the mark, bytes
 * that an fsync had covered are gone, and the node must not pretend that it never had them.
 *
 * The mark is not synced: that would cost each commit a second fsync. It outlives a killed process. What a power cut leaves is
 * an older mark, or none, and either is still true: it was written after the fsync that it speaks of. Only a truncation makes
 * it untrue; before one it is lowered durably.
 *
 * Little-endian: magic "PGDFLUSH" | flushLsn u64 | CRC-32C u32 of tenant id, timeline id and what is before.
 */
import {type Lsn, readLsn64, writeLsn64} from '#postgres/lsn.ts';
import {crc32c} from '#runtime/crc.ts';
import type {Disk, DiskFile} from '#runtime/disk.ts';

export const flushMarkName = 'safekeeper.flushed';
const magic = Buffer.from('PGDFLUSH', 'latin1');
const markBytes = 20;

export interface FlushMarkOptions {
  readonly disk: Disk;
  readonly directory: string;
  readonly tenantId: string;
  readonly timelineId: string;
}

/** Undefined: there is none, or it is damaged; then nothing is known. */
export function readFlushMark({disk, directory, tenantId, timelineId}: FlushMarkOptions): Lsn | undefined {
  const path = `${directory}/${flushMarkName}`;
  if (!disk.exists(path)) return undefined;
  const bytes = disk.readFile(path);
  if (bytes.length !== markBytes || !bytes.subarray(0, magic.length).equals(magic)) return undefined;
  return bytes.readUInt32LE(16) === sum(bytes, tenantId, timelineId) ? readLsn64(bytes, 8) : undefined;
}

export class FlushMark {
  readonly #options: FlushMarkOptions;
  readonly #bytes = Buffer.alloc(markBytes);
  #file: DiskFile | undefined;
  #lsn: Lsn | undefined;

  /** `lsn`: what readFlushMark says. */
  constructor(options: FlushMarkOptions, lsn: Lsn | undefined) {
    this.#options = options;
    this.#lsn = lsn;
    magic.copy(this.#bytes);
  }

  /** Throws the disk's error, but not for want of space: an older mark is as true. */
  raise(lsn: Lsn): void {
    if (this.#lsn !== undefined && lsn <= this.#lsn) return;
    try {
      this.#write(lsn);
    } catch (error) {
      if ((error as {code?: string}).code !== 'ENOSPC') throw error;
    }
  }

  /** Durable when it returns: WAL from `lsn` on is about to be dropped. */
  lower(lsn: Lsn): void {
    if (this.#lsn === undefined || this.#lsn <= lsn) return;
    this.#write(lsn);
    this.#file!.syncNow();
  }

  close(): void {
    this.#file?.close();
    this.#file = undefined;
  }

  #write(lsn: Lsn): void {
    const {disk, directory, tenantId, timelineId} = this.#options;
    this.#file ??= disk.open(`${directory}/${flushMarkName}`, 'create');
    const bytes = Buffer.from(this.#bytes);
    writeLsn64(bytes, 8, lsn);
    bytes.writeUInt32LE(sum(bytes, tenantId, timelineId), 16);
    this.#file.write(bytes, 0);
    this.#lsn = lsn;
  }
}

function sum(bytes: Buffer, tenantId: string, timelineId: string): number {
  return crc32c(bytes.subarray(0, 16), crc32c(Buffer.from(tenantId + timelineId, 'latin1')));
}
