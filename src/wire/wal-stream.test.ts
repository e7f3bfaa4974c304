import assert from 'node:assert/strict';
import {createServer} from 'node:net';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {WalStreamClient} from '#wire/wal-stream.ts';

test('a safekeeper that accepts and says nothing (a stopped process) is given up', async () => {
  const mute = createServer(() => {});
  await new Promise<void>((resolve) => mute.listen(0, '127.0.0.1', resolve));
  const started = performance.now();
  await assert.rejects(
    WalStreamClient.connect({
      address: {host: '127.0.0.1', port: (mute.address() as {port: number}).port},
      token: 'token',
      tenantId: 'a'.repeat(32),
      timelineId: 'b'.repeat(32),
      startLsn: 0x1000 as Lsn,
      onWal: () => {},
      onKeepalive: () => {},
      onClose: () => {},
    }),
    /before it answered/,
  );
  assert.ok(performance.now() - started < 60_000);
  mute.close();
});
