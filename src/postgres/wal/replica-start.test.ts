import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import {ControlFile, databaseState, parseControlFile} from '#postgres/control-file.ts';
import {lsn} from '#postgres/lsn.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {makeReplicaStart, withPreviousLsn} from '#postgres/wal/replica-start.ts';
import {segmentStart, walSegmentSizeDefault} from '#postgres/wal/segment.ts';

function control(): ControlFile {
  const bytes = Buffer.alloc(296);
  bytes.writeBigUInt64LE(7_000_000_000_000_000_001n, 0);
  bytes.writeUInt32LE(1300, 8);
  const file = new ControlFile(bytes);
  file.checkPoint.nextXid = 1000;
  return file;
}

test('at any X three records end exactly there, readable, and pg_control points to the first', () => {
  const segment = 3 * walSegmentSizeDefault;
  const places = [
    segment,
    segment + 40,
    segment + 48,
    segment + 8192,
    segment + 8192 + 24,
    segment + 5 * 8192 - 8,
    segment + 123_456,
  ];
  for (const at of places)
    for (const count of [0, 1, 57, 4000]) {
      const x = lsn(at);
      const made = makeReplicaStart({
        lsn: x,
        controlFile: control(),
        runningXids: Array.from({length: count}, (_, i) => 999 - (i % 900)),
      });
      const parsed = parseControlFile(made.controlFile);
      assert.equal(parsed.state, databaseState.shutDownInRecovery);
      const from = parsed.checkPointLsn;
      const wal = Buffer.concat(made.files.map((f) => f.bytes));
      const fileStart = segmentStart(from);
      const pageStart = from - (from % 8192);
      const reader = new WalReader({startLsn: lsn(pageStart)});
      const end = x % 8192 === (x % walSegmentSizeDefault < 8192 ? 40 : 24) ? x - (x % 8192) : x;
      reader.push(wal.subarray(pageStart - fileStart, end - fileStart));
      const record = new WalRecord();
      const seen: string[] = [];
      let last = 0;
      while (reader.next(record)) {
        seen.push(`${record.rmid}/${record.info}`);
        last = record.startLsn;
      }
      assert.equal(reader.failure, undefined);
      assert.deepEqual(seen, ['0/16', '0/32', '8/16'], `X at ${at}, ${count} running`);
      assert.equal(reader.lastRecordEndLsn, end);
      assert.equal(last, made.previousLsn);
      const main = record.mainData();
      assert.equal(main.readInt32LE(0), count);
      assert.equal(main.readUInt32LE(12), 1000);
      for (let i = 1; i < count; i++)
        assert.ok(main.readUInt32LE(24 + i * 4) >= main.readUInt32LE(20 + i * 4), 'in order of age');
    }
});

test('a record gets another predecessor and stays valid', () => {
  const made = makeReplicaStart({lsn: lsn(walSegmentSizeDefault * 2 + 4096), controlFile: control(), runningXids: [5]});
  const from = parseControlFile(made.controlFile).checkPointLsn;
  const wal = Buffer.concat(made.files.map((f) => f.bytes));
  const reader = new WalReader({startLsn: lsn(from - (from % 8192))});
  reader.push(wal.subarray(from - (from % 8192) - segmentStart(from)));
  const record = new WalRecord();
  assert.ok(reader.next(record));
  const whole = Buffer.from(record.whole());
  const header = withPreviousLsn(whole, lsn(0x1234568));
  header.copy(whole);
  const again = new WalReader({startLsn: from, previousLsn: lsn(0x1234568)});
  again.push(whole);
  assert.ok(again.next(new WalRecord()), again.failure?.reason ?? '');
});
