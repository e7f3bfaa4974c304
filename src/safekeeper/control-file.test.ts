import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import type {AcceptorState} from '#safekeeper/acceptor.ts';
import {ControlFileError, decodeControlFile, encodeControlFile} from '#safekeeper/control-file.ts';

const state: AcceptorState = {
  tenantId: 'a'.repeat(32),
  timelineId: 'b'.repeat(32),
  systemId: '7345678901234567890',
  pgVersion: 150018,
  startLsn: 0x1_0000_0028 as Lsn,
  membership: {generation: 2, members: [{nodeId: 1, host: 'localhost', port: 6000}], newMembers: []},
  term: 12,
  history: Array.from({length: 200}, (_, i) => ({term: i, lsn: (0x1_0000_0028 + i * 8) as Lsn})),
  commitLsn: 0x2_0000_0000 as Lsn,
  remoteConsistentLsn: 0x1_8000_0000 as Lsn,
  archivedLsn: 0x1_9000_0000 as Lsn,
  localStartLsn: 0x1_7000_0000 as Lsn,
};

test('comes back as it was', () => {
  assert.deepEqual(decodeControlFile(encodeControlFile(state), 'x'), state);
});

test('any flipped bit and any cut is found', () => {
  const bytes = encodeControlFile({...state, history: state.history.slice(0, 3)});
  for (let i = 0; i < bytes.length; i++) {
    const damaged = Buffer.from(bytes);
    damaged[i]! ^= 1 << (i % 8);
    assert.throws(
      () => decodeControlFile(damaged, 'sk/control'),
      (e: Error) => e instanceof ControlFileError && e.message.includes('sk/control'),
    );
    assert.throws(() => decodeControlFile(bytes.subarray(0, i), 'sk/control'), ControlFileError);
  }
});
