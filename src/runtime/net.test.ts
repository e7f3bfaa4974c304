import assert from 'node:assert/strict';
import {connect, createServer} from 'node:net';
import {test} from 'node:test';
import {SeededRandom} from '#runtime/random.ts';
import {type FrameConnection, connectFrames, listenFrames} from '#runtime/net.ts';

interface Received {
  readonly type: number;
  readonly payload: Buffer;
}

/** Frames that arrive when `sent` goes through a wire that `change`s the bytes. */
async function through(
  sent: readonly Received[],
  change: (all: Buffer) => Buffer,
): Promise<{got: Received[]; error: Error | undefined}> {
  const bytes: Buffer[] = [];
  const sink = createServer((socket) => socket.on('data', (d) => bytes.push(d)));
  await new Promise<void>((resolve) => sink.listen(0, '127.0.0.1', resolve));
  const client = await connectFrames({host: '127.0.0.1', port: (sink.address() as {port: number}).port});
  const closed = new Promise<void>((resolve) => (client.onClose = () => resolve()));
  for (const {type, payload} of sent) client.send(type, payload.subarray(0, 1), payload.subarray(1));
  client.close();
  await closed;
  sink.close();

  const got: Received[] = [];
  let end: (error: Error | undefined) => void = () => {};
  const ended = new Promise<Error | undefined>((resolve) => (end = resolve));
  const listener = await listenFrames({host: '127.0.0.1', port: 0}, (c: FrameConnection) => {
    c.onFrame = (type, payload) => got.push({type, payload});
    c.onClose = end;
  });
  const raw = connect(listener.port, '127.0.0.1');
  raw.on('error', () => {});
  raw.end(change(Buffer.concat(bytes)));
  const error = await ended;
  await listener.close();
  return {got, error};
}

/** The same, received by who made the connection; every second payload's memory is given back. */
async function toClient(
  sent: readonly Received[],
  change: (all: Buffer) => Buffer,
): Promise<{got: Received[]; error: Error | undefined}> {
  let bytes = Buffer.alloc(0);
  await through(sent, (all) => (bytes = Buffer.from(all)));
  const server = createServer((socket) => {
    const all = change(bytes);
    // In pieces of many sizes.
    for (let at = 0, size = 1; at < all.length; at += size, size = (size * 7) % 100_003)
      socket.write(all.subarray(at, at + size));
    socket.end();
    socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const client = await connectFrames({host: '127.0.0.1', port: (server.address() as {port: number}).port});
  const got: Received[] = [];
  client.onFrame = (type, payload) => {
    got.push({type, payload: Buffer.from(payload)});
    if (got.length % 2 === 0) client.recycle(payload);
  };
  const error = await new Promise<Error | undefined>((resolve) => (client.onClose = resolve));
  server.close();
  return {got, error};
}

const frames = [
  {type: 3, payload: Buffer.from('small')},
  {type: 200, payload: Buffer.alloc(70_000, 'large')},
  {type: 0, payload: Buffer.alloc(0)},
];

test('frames arrive as they were sent', async () => {
  for (const wire of [through, toClient]) {
    const {got, error} = await wire(frames, (all) => all);
    assert.deepEqual(got, frames);
    assert.equal(error, undefined);
  }
  const random = new SeededRandom(8);
  const many = Array.from({length: 60}, (_, type) => ({
    type,
    payload: random.bytes(random.uint32() % (type % 3 === 0 ? 300_000 : type % 3 === 1 ? 70_000 : 100)),
  }));
  const {got} = await toClient(many, (all) => all);
  assert.deepEqual(got, many);
});

test('no flipped bit is ever handed on: the frames before it are whole, the connection ends with it', async () => {
  const random = new SeededRandom(7);
  const bits = Array.from({length: 88}, (_, bit) => bit); // the whole header of the first frame
  for (let i = 0; i < 40; i++) bits.push(random.uint32() % (70_000 * 8));
  for (const bit of bits) {
    const {got, error} = await (bit % 2 === 0 ? through : toClient)(frames, (all) => {
      const changed = Buffer.from(all);
      changed[bit >> 3]! ^= 1 << (bit & 7);
      return changed;
    });
    assert.match(error?.message ?? `bit ${bit}: no error`, /damaged on the way|none of ours/);
    assert.deepEqual(got, frames.slice(0, got.length));
    assert.ok(got.length < frames.length);
  }
});

test('between processes of one machine frames take the short way; over a forwarder, and to others, TCP', async () => {
  const peers: string[] = [];
  const listener = await listenFrames({host: '127.0.0.1', port: 0}, (c: FrameConnection) => {
    peers.push(c.peer);
    c.onFrame = (type, payload) => c.sendNow(type, payload);
  });
  const forwarder = createServer((socket) => {
    const onward = connect(listener.port, '127.0.0.1');
    socket.pipe(onward).pipe(socket);
    for (const s of [socket, onward]) s.on('error', () => {});
  });
  await new Promise<void>((resolve) => forwarder.listen(0, '127.0.0.1', resolve));
  for (const port of [listener.port, (forwarder.address() as {port: number}).port]) {
    const client = await connectFrames({host: '127.0.0.1', port});
    const answer = new Promise<string>((resolve) => (client.onFrame = (_, payload) => resolve(String(payload))));
    client.send(1, Buffer.from('one '), Buffer.from(String(port)));
    assert.equal(await answer, `one ${port}`);
    client.destroy();
  }
  assert.equal(peers[0], process.platform === 'linux' ? 'this machine' : peers[0]);
  assert.match(peers[1]!, /^127\.0\.0\.1:\d+$/);
  forwarder.close();
  await listener.close();
  // The name is free again at once.
  const again = await listenFrames({host: '127.0.0.1', port: listener.port}, () => {});
  await again.close();
  await assert.rejects(connectFrames({host: '127.0.0.1', port: again.port}), /ECONNREFUSED/);
});

test('what leaves at once stays in order when the other end reads slowly, and whoever writes is told', async () => {
  const frames = Array.from({length: 2000}, (_, i) => Buffer.alloc(i % 3 === 0 ? 11_000 : 200, i));
  let server: FrameConnection | undefined;
  const listener = await listenFrames({host: '127.0.0.1', port: 0}, (c: FrameConnection) => (server = c));
  const client = await connectFrames({host: '127.0.0.1', port: listener.port});
  client.pause();
  const got: Buffer[] = [];
  const all = new Promise<void>((resolve) => {
    client.onFrame = (_, payload) => {
      got.push(payload);
      if (got.length === frames.length) resolve();
    };
  });
  while (server === undefined) await new Promise(setImmediate);
  let stopped = 0;
  for (const frame of frames) if (!server.sendNow(1, frame)) stopped++;
  assert.ok(stopped > 0 && server.bufferedBytes > 1024 * 1024);
  server.send(1, Buffer.from('after them'));
  frames.push(Buffer.from('after them'));
  client.resume();
  await all;
  assert.deepEqual(got, frames);
  await listener.close();
});

test('a listener that closes ends the connections it has accepted', async () => {
  const listener = await listenFrames({host: '127.0.0.1', port: 0}, () => {});
  const clients = await Promise.all(
    [1, 2].map(async () => await connectFrames({host: '127.0.0.1', port: listener.port})),
  );
  const ended = clients.map((client) => new Promise<void>((resolve) => (client.onClose = () => resolve())));
  await listener.close();
  await Promise.all(ended);
});
