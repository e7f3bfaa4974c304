import assert from 'node:assert/strict';
import {test} from 'node:test';
import {Kysely, SqliteDialect, sql} from 'kysely';
import {openSqlite} from '#runtime/sqlite.ts';
import {migrations} from '#control/store/migrations.ts';

test('attachments of tenants become attachments of shard 0 of 1', async () => {
  const store = new Kysely<unknown>({dialect: new SqliteDialect({database: openSqlite(':memory:')})});
  const upTo = async (from: string, to: string): Promise<void> => {
    for (const name of Object.keys(migrations).sort()) if (name > from && name <= to) await migrations[name]!.up(store);
  };
  await upTo('', '0003_points');
  await sql`insert into attachments (tenant_id, pageserver_id, generation) values ('t1', 1, 17), ('t2', 1, 18)`.execute(
    store,
  );
  await upTo('0003_points', '0004_attachments_of_shards');
  const {rows} = await sql`select * from attachments order by tenant_id`.execute(store);
  const row = {shard_number: 0, shard_count: 1, pageserver_id: 1, secondary_id: null};
  assert.deepEqual(
    rows.map((row) => ({...(row as object)})),
    [
      {tenant_id: 't1', generation: 17, ...row},
      {tenant_id: 't2', generation: 18, ...row},
    ],
  );
  await store.destroy();
});
