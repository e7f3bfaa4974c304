/** For the tests of hash and GIN redo only: a WAL record from its parts, through the real decoder. */
import {lsn} from '#postgres/lsn.ts';
import {decodeRecord, recordHeaderSize, WalRecord} from '#postgres/wal/record.ts';

export interface TestBlock {
  readonly id: number;
  readonly data?: Buffer;
  readonly willInit?: boolean;
  readonly blockNumber?: number;
}

/** A record of resource manager `rmid` with block references (relation 1663/5/16384, main fork) and main data below 256 bytes. */
export function testRecord(rmid: number, info: number, main: Buffer, blocks: readonly TestBlock[]): WalRecord {
  const headers = blocks.map((b) => {
    const header = Buffer.alloc(20);
    header[0] = b.id;
    header[1] = (b.data === undefined ? 0 : 0x20) | (b.willInit === true ? 0x40 : 0);
    header.writeUInt16LE(b.data?.length ?? 0, 2);
    header.writeUInt32LE(1663, 4);
    header.writeUInt32LE(5, 8);
    header.writeUInt32LE(16384, 12);
    header.writeUInt32LE(b.blockNumber ?? b.id + 100, 16);
    return header;
  });
  const parts = [...headers, Buffer.from([255, main.length]), ...blocks.map((b) => b.data ?? Buffer.alloc(0)), main];
  const bytes = Buffer.concat([Buffer.alloc(recordHeaderSize), ...parts]);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes[16] = info;
  bytes[17] = rmid;
  const record = new WalRecord();
  decodeRecord(bytes, lsn(0x1000), lsn(0x2000), record);
  return record;
}

/** Little-endian integers one after the other: 'u8:1 u16:2 u32:3', or hex bytes as 'x:00ff'. */
export function bytesOf(text: string): Buffer {
  return Buffer.concat(
    text.split(' ').map((field) => {
      const [kind, value = ''] = field.split(':');
      if (kind === 'x') return Buffer.from(value, 'hex');
      const size = kind === 'u8' ? 1 : kind === 'u16' ? 2 : 4;
      const out = Buffer.alloc(size);
      out.writeUIntLE(Number(value), 0, size);
      return out;
    }),
  );
}
