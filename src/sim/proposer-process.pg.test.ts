/** The proposer as the compute agent runs it: a process with events on its standard output and commands on its input. */
import assert from 'node:assert/strict';
import {writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {test} from 'node:test';
import type {ProposerEvent} from '#proposer/driver.ts';
import {type ChildProcessHandle, executablePath, spawnProcess} from '#runtime/process.ts';
import {TestCell} from '#sim/test-cell.ts';
import {PostgresCluster} from '../../test/postgres-cluster.ts';

async function spawnProposer(
  cell: TestCell,
  name: string,
): Promise<{child: ChildProcessHandle; event: (kind: string) => Promise<Record<string, unknown>>}> {
  const path = join(cell.dir, `${name}.json`);
  writeFileSync(path, JSON.stringify(await cell.proposerConfig()), {mode: 0o600});
  const events: ProposerEvent[] = [];
  let wake = (): void => {};
  const child = await spawnProcess({
    command: executablePath,
    args: ['--disable-warning=ExperimentalWarning', 'src/cli/main.ts', 'proposer', '--config', path],
    onStdoutLine: (line) => {
      events.push(JSON.parse(line) as ProposerEvent);
      wake();
    },
  });
  void child.exited.then(() => wake());
  const event = async (kind: string): Promise<Record<string, unknown>> => {
    for (let i = 0; i < 2400; i++) {
      const found = events.find((e) => e.event === kind);
      if (found) return {...found};
      await new Promise<void>((resolve) => {
        wake = resolve;
        setTimeout(resolve, 100);
      });
    }
    throw new Error(`no ${kind} from ${name}: ${JSON.stringify(events)}`);
  };
  return {child, event};
}

test('elected, streaming, stopped, exit 0; a rival is fenced and exits with 3', {timeout: 600_000}, async () => {
  await using cluster = await PostgresCluster.create({settings: {wal_level: 'replica'}});
  await cluster.query('create table t (id int)');
  const [row] = await cluster.query(
    "select pg_current_wal_insert_lsn()::text as lsn, pg_logical_emit_message(true, 'a', 'b')",
  );
  await using cell = await TestCell.create();
  await cell.createTimeline(row!['lsn'] as string);

  const old = await spawnProposer(cell, 'old');
  assert.deepEqual(await old.event('elected'), {event: 'elected', term: 1, lsn: row!['lsn']});
  const {child, event} = await spawnProposer(cell, 'new');
  assert.deepEqual(await event('elected'), {event: 'elected', term: 2, lsn: row!['lsn']});
  assert.equal((await old.event('fenced'))['term'], 2);
  assert.deepEqual(await old.child.exited, {code: 3, signal: null});

  child.writeStdin(
    `${JSON.stringify({event: 'stream', socketDir: cluster.socketDir, port: cluster.port, user: 'postgres'})}\n`,
  );
  await event('streaming');
  await cluster.query("alter system set synchronous_standby_names = 'pagoda'");
  await cluster.query('select pg_reload_conf()');
  for (let i = 0; i < 50; i++) await cluster.query('insert into t values (1)');
  await cluster.stop('fast');
  const stopped = await event('stopped');
  assert.deepEqual(await child.exited, {code: 0, signal: null});
  assert.equal((await cell.status(1))['commitLsn'], stopped['commitLsn']);
});

test('SIGTERM stops a proposer in order', {timeout: 600_000}, async () => {
  await using cell = await TestCell.create();
  await cell.createTimeline('0/1000028');
  const {child, event} = await spawnProposer(cell, 'terminated');
  await event('elected');
  child.kill('SIGTERM');
  assert.deepEqual(await child.exited, {code: 0, signal: null});
});
