/** Resource manager ids of PostgreSQL 15 (access/rmgrlist.h) and their names as pg_waldump prints them. */
export const rmgr = {
  xlog: 0, transaction: 1, storage: 2, clog: 3, database: 4, tablespace: 5, multiXact: 6, relMap: 7, standby: 8, heap2: 9,
  heap: 10, btree: 11, hash: 12, gin: 13, gist: 14, sequence: 15, spGist: 16, brin: 17, commitTs: 18, replicationOrigin: 19,
  generic: 20, logicalMessage: 21,
} as const;

export const rmgrNames = [
  'XLOG', 'Transaction', 'Storage', 'CLOG', 'Database', 'Tablespace', 'MultiXact', 'RelMap', 'Standby', 'Heap2', 'Heap',
  'Btree', 'Hash', 'Gin', 'Gist', 'Sequence', 'SPGist', 'BRIN', 'CommitTs', 'ReplicationOrigin', 'Generic', 'LogicalMessage',
] as const;
