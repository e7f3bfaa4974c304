/** Loads whose WAL holds mostly one record type: the ten commonest of four workloads (issue 3), and Gin/INSERT. */
import type {PostgresCluster} from '../test/postgres-cluster.ts';
import type {Load} from './recorded-wal.ts';

export interface TypeLoad extends Load {
  /** The type that is measured by it. */
  readonly type: string;
}

/** `rows` sets the size: about as many records of the type. */
export function typeLoads(rows: number): readonly TypeLoad[] {
  const load = (type: string, setUp: readonly string[], run: readonly string[]): TypeLoad => ({
    type,
    name: `redo-${type.replace('/', '-').toLowerCase()}-${rows}`,
    setUp: (cluster) => inOrder(cluster, setUp),
    run: (cluster) => inOrder(cluster, run),
  });
  const table = 'create table t (a int, b int, c text)';
  const fill = `insert into t select i, i, 'row number ' || i from generate_series(1, ${rows}) i`;
  /** Distinct, in no order. */
  const scattered = 'i::bigint * 7919 % 1000003';
  return [
    load('Heap/INSERT', [table], [fill]),
    load('Heap/DELETE', [table, fill, 'vacuum freeze t'], ['delete from t']),
    load('Heap/HOT_UPDATE', [`${table} with (fillfactor = 45)`, fill, 'vacuum freeze t'], ['update t set b = b + 1']),
    load('Heap/UPDATE', [table, fill, 'vacuum freeze t'], ['update t set b = b + 1']),
    // Pages nearly full: about one row of each changes within the page, and the next reader prunes it.
    {
      ...load(
        'Heap2/PRUNE',
        [`${table} with (fillfactor = 92)`, `${fill.replace(String(rows), String(rows / 4))}`, 'vacuum freeze t'],
        Array.from({length: 120}, (_, i) => [
          `update t set b = b + 1 where a % 120 = ${i}`,
          'select count(*) from t',
        ]).flat(),
      ),
      name: `redo-heap2-prune-one-${rows}`,
    },
    load(
      'Btree/INSERT_LEAF',
      [
        'create table t (a int, b int, c int, d int)',
        ...['a', 'b', 'c', 'd'].map((column) => `create index on t (${column})`),
        `insert into t select ${scattered}, i % 5003, i, ${scattered} % 7000 from generate_series(1, ${rows / 4}) i`,
      ],
      [
        `insert into t select ${scattered}, i % 5003, i, ${scattered} % 7000 from generate_series(${rows / 4 + 1}, ${rows / 2}) i`,
      ],
    ),
    load('Hash/INSERT', [table, fill, 'vacuum freeze t'], ['create index on t using hash (a)']),
    load(
      'Gin/UPDATE_META_PAGE',
      [
        'create table t (a int[], b int[], c int[])',
        ...['a', 'b', 'c'].map(
          (column) =>
            `create index on t using gin (${column}) with (fastupdate = on, gin_pending_list_limit = 2097151)`,
        ),
      ],
      [`insert into t select array[i % 100], array[i % 77, i], array[i] from generate_series(1, ${rows / 4}) i`],
    ),
    load(
      'Gin/INSERT',
      [
        'create table t (a int[])',
        'create index on t using gin (a) with (fastupdate = off)',
        `insert into t select array[i % 1000, i % 777] from generate_series(1, ${rows / 8}) i`,
      ],
      [`insert into t select array[i % 1000, i % 777, i % 50, i] from generate_series(1, ${rows / 8}) i`],
    ),
    load(
      'Gist/PAGE_UPDATE',
      [
        'create table t (a point)',
        'create index on t using gist (a)',
        `insert into t select point(${scattered}, i % 1009) from generate_series(1, ${rows / 8}) i`,
      ],
      [`insert into t select point(${scattered}, i % 1013) from generate_series(1, ${rows / 4}) i`],
    ),
    load(
      'SPGist/ADD_LEAF',
      [
        'create table t (a point)',
        'create index on t using spgist (a)',
        `insert into t select point(${scattered}, i % 1009) from generate_series(1, ${rows / 8}) i`,
      ],
      [`insert into t select point(${scattered}, i % 1013) from generate_series(1, ${rows / 4}) i`],
    ),
  ];
}

async function inOrder(cluster: PostgresCluster, statements: readonly string[]): Promise<void> {
  for (const sql of statements) await cluster.query(sql);
}
