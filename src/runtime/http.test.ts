import assert from 'node:assert/strict';
import {type Socket, connect, createServer} from 'node:net';
import {test} from 'node:test';
import {requestJson, requestStream, startHttpServer} from '#runtime/http.ts';
import {createLog} from '#runtime/log.ts';

async function* twoParts(): AsyncGenerator<Buffer> {
  yield Buffer.alloc(1000, 'a');
  yield Buffer.alloc(1000, 'b');
}

/** A server, and a port in front of it that changes one byte of what it forwards. */
async function behind(
  change: (chunk: Buffer, towards: 'server' | 'client') => Buffer,
): Promise<{url: string; seen: unknown[]; close(): Promise<void>}> {
  const seen: unknown[] = [];
  const server = await startHttpServer({
    host: '127.0.0.1',
    port: 0,
    log: createLog({component: 'test', level: 'error'}),
    routes: [
      {
        method: 'POST',
        path: '/echo/:word',
        handler: async (request) => {
          const json = await request.json();
          seen.push(json);
          return {status: 200, json: {word: request.params['word'], json}};
        },
      },
      {
        method: 'GET',
        path: '/stream',
        handler: async () => ({status: 200, body: twoParts(), headers: {'x-pagoda-lsn': '0/1A2B'}}),
      },
      {
        method: 'PUT',
        path: '/stream',
        handler: async (request) => {
          let bytes = 0;
          for await (const part of request.body) bytes += part.length;
          seen.push(bytes);
          return {status: 200, json: {bytes}};
        },
      },
    ],
  });
  const sockets = new Set<Socket>();
  const front = createServer((client) => {
    const up = connect(server.port, '127.0.0.1');
    for (const s of [client, up]) {
      sockets.add(s);
      s.on('error', () => {});
    }
    client.on('data', (d) => up.write(change(d, 'server')));
    up.on('data', (d) => client.write(change(d, 'client')));
    client.on('close', () => up.destroy());
    up.on('close', () => client.destroy());
  });
  await new Promise<void>((resolve) => front.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(front.address() as {port: number}).port}`,
    seen,
    async close() {
      front.close();
      for (const s of sockets) s.destroy();
      await server.close();
    },
  };
}

const replace = (from: string, to: string) => (chunk: Buffer) =>
  Buffer.from(chunk.toString('latin1').replace(from, to), 'latin1');

test('bodies and heads arrive as they were sent', async () => {
  const w = await behind((chunk) => chunk);
  try {
    assert.deepEqual(await requestJson({method: 'POST', url: `${w.url}/echo/one?x=1`, token: 't', body: {a: 1}}), {
      status: 200,
      json: {word: 'one', json: {a: 1}},
    });
    const {body, headers} = await requestStream({method: 'GET', url: `${w.url}/stream`});
    const parts: Buffer[] = [];
    for await (const part of body) parts.push(part);
    assert.equal(Buffer.concat(parts).length, 2000);
    assert.equal(headers['x-pagoda-lsn'], '0/1A2B');
    const put = await requestStream({method: 'PUT', url: `${w.url}/stream`, body: twoParts()});
    for await (const part of put.body) assert.equal(part.toString(), '{"bytes":2000}');
    assert.deepEqual(w.seen, [{a: 1}, 2000]);
  } finally {
    await w.close();
  }
});

test('a damaged head or body, of a request or an answer, is an error and never believed', async () => {
  const cases: [string, string, (url: string) => Promise<unknown>][] = [
    ['/echo/one', '/echo/two', (url) => requestJson({method: 'POST', url: `${url}/echo/one`, body: {a: 1}})],
    ['{"a":1}', '{"a":2}', (url) => requestJson({method: 'POST', url: `${url}/echo/one`, body: {a: 1}})],
    ['"word":"one"', '"word":"two"', (url) => requestJson({method: 'POST', url: `${url}/echo/one`, body: {}})],
    ['0/1A2B', '0/1A2C', (url) => requestStream({method: 'GET', url: `${url}/stream`})],
    ['HTTP/1.1 200', 'HTTP/1.1 404', (url) => requestStream({method: 'GET', url: `${url}/stream`})],
    [
      'aaaa',
      'aaba',
      async (url) => {
        for await (const part of (await requestStream({method: 'GET', url: `${url}/stream`})).body) assert.ok(part);
      },
    ],
    ['bbbb', 'bbab', (url) => requestStream({method: 'PUT', url: `${url}/stream`, body: twoParts()})],
  ];
  for (const [from, to, call] of cases) {
    const w = await behind(replace(from, to));
    try {
      await assert.rejects(call(w.url), `${from} became ${to}`);
      if (from !== '"word":"one"') assert.deepEqual(w.seen, []);
    } finally {
      await w.close();
    }
  }
});

test('a kept connection that the server closes just then: a GET is asked again, a POST is told', async (t) => {
  const answer = (body: string): string =>
    `HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\nconnection: keep-alive\r\n\r\n${body}`;
  const asked = new Map<Socket, number>();
  const server = createServer((socket) => {
    asked.set(socket, 0);
    socket.on('error', () => {});
    socket.on('data', () => {
      const n = asked.get(socket)! + 1;
      asked.set(socket, n);
      if (n === 1) socket.write(answer(`{"connection":${asked.size}}`));
      else socket.resetAndDestroy();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    for (const socket of asked.keys()) socket.destroy();
    server.close();
  });
  const url = `http://127.0.0.1:${(server.address() as {port: number}).port}/`;
  assert.deepEqual((await requestJson({method: 'GET', url})).json, {connection: 1});
  assert.deepEqual((await requestJson({method: 'GET', url})).json, {connection: 2});
  await assert.rejects(requestJson({method: 'POST', url, body: {}}), /ECONNRESET|socket hang up/);
});
