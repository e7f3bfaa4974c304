import assert from 'node:assert/strict';
import {once} from 'node:events';
import {type Socket, createServer} from 'node:net';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {ReplicationClient} from '#wire/pg-replication.ts';

const messageBytes = 100_000;

function message(type: string, body: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.write(type);
  head.writeUInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

function wal(lsn: number): Buffer {
  const body = Buffer.alloc(25 + messageBytes, (lsn / messageBytes) % 251);
  body.write('w');
  body.writeBigUInt64BE(BigInt(lsn), 1);
  return message('d', body);
}

test('WAL stays as it was given until it is released; then its memory is used again', async () => {
  let walsender: Socket | undefined;
  const server = createServer((socket) => {
    walsender = socket;
    const ready = Buffer.concat([message('R', Buffer.alloc(4)), message('Z', Buffer.from('I'))]);
    socket.once('data', () => socket.write(ready));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const {port} = server.address() as {port: number};
  const client = await ReplicationClient.connect({
    address: {host: '127.0.0.1', port},
    user: 'nobody',
    applicationName: 'test',
  });
  try {
    const given: {lsn: number; bytes: Buffer}[] = [];
    let arrived = (): void => {};
    client.start({
      startLsn: 0 as Lsn,
      onWal: (lsn, bytes) => {
        given.push({lsn, bytes});
        arrived();
      },
      onReplyRequested: () => {},
      onEnd: () => {},
    });
    const memory = new Set<ArrayBufferLike>();
    let releasedLsn = 0;
    let sentLsn = 0;
    for (let round = 0; round < 30; round++) {
      for (let i = 0; i < 20; i++, sentLsn += messageBytes) walsender!.write(wal(sentLsn));
      while (given.length * messageBytes < sentLsn) await new Promise<void>((resolve) => (arrived = resolve));
      for (const {lsn, bytes} of given.slice(releasedLsn / messageBytes)) {
        assert.ok(
          bytes.every((byte) => byte === (lsn / messageBytes) % 251),
          `WAL at ${lsn} was written over`,
        );
        memory.add(bytes.buffer);
      }
      // In the middle of a piece of memory: what is behind stays.
      releasedLsn = sentLsn - 3 * messageBytes;
      client.release(releasedLsn as Lsn);
    }
    // 60 MB came; two rounds and what is half used at both ends had to be there at once.
    assert.ok(memory.size <= 8, `${memory.size} pieces of memory of 1 MiB`);
  } finally {
    client.close();
    walsender?.destroy();
    server.close();
  }
});
