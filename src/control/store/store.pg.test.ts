/** The control plane on PostgreSQL: one code path, so every test of the control plane runs there too. */
import {strict as assert} from 'node:assert';
import {spawn} from 'node:child_process';
import {readdirSync} from 'node:fs';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {PostgresCluster} from '../../../test/postgres-cluster.ts';
import {openStore} from '#control/store/open.ts';

let cluster: PostgresCluster;
before(async () => {
  cluster = await PostgresCluster.create({settings: {max_connections: 400, log_statement: 'ddl'}});
});
after(() => cluster[Symbol.asyncDispose]());

const url = (schema?: string): string =>
  cluster.connectionString() +
  (schema === undefined ? '' : `?options=${encodeURIComponent(`-c search_path=${schema}`)}`);

test('tables are made once, in the schema of the role, also beside those of another installation', async () => {
  const first = await openStore(url());
  await first.insertInto('meta').values({key: 'who', value: 'first'}).execute();
  await first.destroy();
  await cluster.query('create schema other');
  const other = await openStore(url('other'));
  assert.deepEqual(await other.selectFrom('meta').selectAll().execute(), []);
  await other.destroy();
  const again = await openStore(url());
  assert.deepEqual(await again.selectFrom('meta').selectAll().execute(), [{key: 'who', value: 'first'}]);
  await again.destroy();
  await assert.rejects(openStore(url('nowhere')), /no schema to work in/);
});

test('every test of the control plane passes on PostgreSQL', async () => {
  const folder = join(import.meta.dirname, '..');
  const files = readdirSync(folder, {recursive: true, encoding: 'utf8'})
    .filter((name) => name.endsWith('.test.ts') && !name.endsWith('.pg.test.ts'))
    .map((name) => join(folder, name));
  const {NODE_TEST_CONTEXT: _, ...environment} = process.env;
  const child = spawn(process.execPath, ['--test', '--test-concurrency=4', '--test-reporter=tap', ...files], {
    env: {...environment, PAGODA_TEST_DATABASE: url()},
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const output: Buffer[] = [];
  child.stdout.on('data', (part: Buffer) => output.push(part));
  const code = await new Promise((resolve) => child.once('close', resolve));
  assert.equal(code, 0, Buffer.concat(output).toString('utf8').slice(-8000));
  // Each has made a database of its own, if it really was there.
  const made = cluster.log.match(/create database "test_/g)?.length ?? 0;
  assert.ok(made >= 50, `only ${made} databases were made: the tests ran elsewhere`);
});
