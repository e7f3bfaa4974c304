/** Databases, tablespaces, relation maps (dbcommands.c dbase_redo, tablespace.c tblspc_redo, relmapper.c relmap_redo). */
import {relationMapSize} from '#postgres/relmap.ts';
import type {WalRecord} from '#postgres/wal/record.ts';
import {type Effects, type InterpretContext, effects, problem} from '#pageserver/ingest/interpret-context.ts';

const opcode = {createFileCopy: 0x00, createWalLog: 0x10, drop: 0x20} as const;

export function interpretDatabase(record: WalRecord, {data, sink}: InterpretContext): Effects {
  const lsn = record.endLsn;
  switch (record.info & 0xf0) {
    case opcode.createFileCopy: {
      const dbNode = data.u32();
      const spcNode = data.u32();
      const sourceDbNode = data.u32();
      const sourceSpcNode = data.u32();
      return effects(() => {
        sink.copyDatabase(sourceSpcNode, sourceDbNode, spcNode, dbNode, lsn);
        return 'barrier';
      });
    }
    case opcode.createWalLog: {
      const dbNode = data.u32();
      const spcNode = data.u32();
      return effects(() => sink.createDatabase(spcNode, dbNode, true, lsn));
    }
    case opcode.drop: {
      const dbNode = data.u32();
      const count = data.u32();
      if (count * 4 > data.remaining) return problem(`${count} tablespaces announced, ${data.remaining} bytes left`);
      const spcNodes = Array.from({length: count}, () => data.u32());
      return effects(() => {
        for (const spcNode of spcNodes) sink.dropDatabase(spcNode, dbNode, lsn);
      });
    }
    default:
      return problem('unknown type of record');
  }
}

/** Only that the tablespace exists is kept: on a compute it is a plain directory, wherever the original lay. */
export function interpretTablespace(record: WalRecord, {data, sink}: InterpretContext): Effects {
  const path = `pg_tblspc/${data.u32()}`;
  if ((record.info & 0xf0) !== 0x00) return effects(() => sink.putAuxFile(path, undefined, record.endLsn));
  const location = Buffer.from(data.cString());
  return effects(() => sink.putAuxFile(path, location, record.endLsn));
}

export function interpretRelationMap(record: WalRecord, {data, sink}: InterpretContext): Effects {
  const dbNode = data.u32();
  const spcNode = data.u32();
  const length = data.u32();
  if (length !== relationMapSize) return problem(`relation map of ${length} bytes, expected ${relationMapSize}`);
  const map = Buffer.from(data.bytes(length));
  return effects(() => sink.putRelationMap(spcNode, dbNode, map, record.endLsn));
}
