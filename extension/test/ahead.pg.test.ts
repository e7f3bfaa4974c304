/** Asking ahead of need: sequential readers, and PostgreSQL's own prefetch hints. */
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {Cluster, Compute, buildExtension, rows} from './cluster.ts';

let base: Cluster;

before(async () => {
  buildExtension();
  base = await Cluster.initialise();
  await base.start();
  await base.query([
    `create table facts as select g as id, (g * 7919) % 40000 as k, repeat('x', 500) as v from generate_series(1, 40000) g`,
    'create index on facts (k)',
    'vacuum analyze',
  ]);
  await base.stop();
});

after(() => base.discard());

async function withCompute(
  work: (compute: Compute) => Promise<void>,
  settings: Record<string, string> = {},
): Promise<void> {
  const compute = await Compute.on(base);
  try {
    await compute.start({settings: {max_parallel_workers_per_gather: '0', ...settings}});
    await work(compute);
  } finally {
    await compute.discard();
  }
}

/** A query whose pages each take 10 ms: its seconds, and the most requests that were under way at once. */
async function cold(
  sql: readonly string[],
  expected: string,
  settings: Record<string, string>,
): Promise<{seconds: number; busiest: number}> {
  let seconds = 0;
  let busiest = 0;
  await withCompute(async (compute) => {
    const client = await compute.connect();
    await rows(client, 'explain select * from facts where k = 1'); // the catalogs are local then
    compute.agent.delayMs = 10;
    for (const statement of sql.slice(0, -1)) await rows(client, statement);
    compute.agent.busiest = 0;
    const started = performance.now();
    assert.deepEqual(await rows(client, sql.at(-1)!), [expected]);
    seconds = (performance.now() - started) / 1000;
    ({busiest} = compute.agent);
    assert.equal(compute.metrics.pagesLate, 0);
    await client.end();
  }, settings);
  return {seconds, busiest};
}

test('a bitmap scan asks for its pages before it needs them', async () => {
  const sql = [
    'set enable_seqscan = off',
    'set enable_indexscan = off',
    'select count(*), sum(length(v)) from facts where k between 100 and 300',
  ];
  const one = await cold(sql, '201|100500', {effective_io_concurrency: '0'});
  const many = await cold(sql, '201|100500', {effective_io_concurrency: '16'});
  console.log({one, many});
  assert.ok(many.busiest >= 8 && one.busiest < 8);
});

test('a sequential scan has the next range under way', async () => {
  const sequential = await cold(['select sum(id), count(v) from facts'], '800020000|40000', {});
  console.log({sequential});
  assert.ok(sequential.busiest >= 2);
});

test('what was asked ahead is right after changes, cancels and other requests in between', () =>
  withCompute(
    async (compute) => {
      const client = await compute.connect();
      const [pid] = await rows(client, 'select pg_backend_pid()');
      await rows(client, 'set enable_seqscan = off; set enable_indexscan = off');
      compute.agent.delayMs = 5;
      await rows(
        client,
        'begin; declare c cursor for select id from facts order by id; fetch 5000 from c; declare d cursor for select id from facts where k between 1 and 20000',
      );
      for (let i = 0; i < 12; i++) {
        await rows(client, 'fetch 300 from d');
        await rows(client, `update facts set v = 'changed' where id between ${i * 3000} and ${i * 3000 + 50}`);
        await rows(client, 'fetch 1000 from c');
      }
      await rows(client, 'commit');
      for (let i = 0; i < 5; i++) {
        const cancelled = rows(client, 'select sum(length(v)) from facts where k between 20000 and 40000').catch(
          () => {},
        );
        setTimeout(() => process.kill(Number(pid), 'SIGINT'), 15);
        await cancelled;
      }
      compute.agent.delayMs = 0;
      const expected = 12 * 51 - 1;
      assert.deepEqual(
        await rows(client, `select count(*), count(*) filter (where v = 'changed'), sum(id) from facts`),
        [`40000|${expected}|800020000`],
      );
      await client.end();
    },
    {shared_buffers: '1MB', effective_io_concurrency: '32'},
  ));

test('ANALYZE and VACUUM of a cold table', () =>
  withCompute(async (compute) => {
    compute.agent.delayMs = 1;
    await compute.query(['analyze facts', 'delete from facts where id > 20000', 'vacuum facts']);
    assert.deepEqual(await compute.query('select count(*), max(id) from facts'), ['20000|20000']);
  }));

test('packed pages are taken as they are, and damaged ones are asked for again unpacked', async () => {
  const sql = 'select count(*), sum(id), min(length(v)) from facts';
  const damages: readonly (readonly [string, (packed: Buffer) => void])[] = [
    ['more segments than pages', (b) => b.writeUInt32LE(0xffffffff, 0)],
    ['a segment of too many pages', (b) => (b[5] = 255)],
    ['a longer raw block', (b) => b.writeUInt32LE(b.readUInt32LE(8) + 1, 8)],
    ['an enormous raw block', (b) => b.writeUInt32LE(0xfffffff0, 8)],
    ['a segment behind the end', (b) => b.writeUInt32LE(0xfffffff0, 12)],
    ['a longer segment', (b) => b.writeUInt32LE(0x7fffffff, 16)],
    ['a page behind the end', (b) => b.writeUInt32LE(0xffffffff, 4 + 16 * b.readUInt32LE(0))],
    ['an unknown codec', (b) => (b[4] = 7)],
    ['LZ4 that is none', (b) => b.fill(0xff, b.length >> 1)],
  ];
  const part = (n: number): string =>
    `select count(*), sum(id) from facts where ctid >= '(${n * 280},1)' and ctid < '(${(n + 1) * 280},1)'`;
  const expected: string[][] = [];
  await withCompute(async (compute) => {
    assert.deepEqual(await compute.query(sql), ['40000|800020000|500']);
    assert.ok(compute.agent.packedServed > 1000, `${compute.agent.packedServed} pages came packed`);
    for (const n of damages.keys()) expected.push(await compute.query(part(n)));
  });
  await withCompute(async (compute) => {
    for (const [n, [what, damage]] of damages.entries()) {
      const client = await compute.connect(); // a session that has met damage does not ask for packed pages again
      await rows(client, 'select 1');
      compute.agent.damage = (packed) => {
        if (packed.readUInt32LE(0) > 1) damage(packed);
      };
      const served = compute.agent.packedServed;
      assert.deepEqual(await rows(client, part(n)), expected[n], what);
      assert.ok(compute.agent.packedServed > served, `${what}: nothing came packed`);
      compute.agent.damage = undefined;
      await client.end();
    }
  });
});
