/** Names of the record types of PostgreSQL 15 that carry blocks, as pg_waldump prints them. */
import type {WalRecord} from '#postgres/wal/record.ts';
import {rmgr, rmgrNames} from '#postgres/wal/rmgr.ts';

const heap = ['INSERT', 'DELETE', 'UPDATE', 'TRUNCATE', 'HOT_UPDATE', 'CONFIRM', 'LOCK', 'INPLACE'];
const heap2 = ['REWRITE', 'PRUNE', 'VACUUM', 'FREEZE_PAGE', 'VISIBLE', 'MULTI_INSERT', 'LOCK_UPDATED', 'NEW_CID'];
const brin = ['CREATE_INDEX', 'INSERT', 'UPDATE', 'SAMEPAGE_UPDATE', 'REVMAP_EXTEND', 'DESUMMARIZE'];

/** By resource manager: names by opcode (xl_info & 0xF0) / 16. */
const names: Readonly<Record<number, readonly (string | undefined)[]>> = {
  [rmgr.xlog]: [
    'CHECKPOINT_SHUTDOWN',
    'CHECKPOINT_ONLINE',
    'NOOP',
    'NEXTOID',
    'SWITCH',
    'BACKUP_END',
    'PARAMETER_CHANGE',
    'RESTORE_POINT',
    'FPW_CHANGE',
    'END_OF_RECOVERY',
    'FPI_FOR_HINT',
    'FPI',
    undefined,
    'OVERWRITE_CONTRECORD',
  ],
  [rmgr.heap]: [...heap, ...heap.map((name) => `${name}+INIT`)],
  [rmgr.heap2]: [...heap2, ...heap2.map((name) => `${name}+INIT`)],
  [rmgr.btree]: [
    'INSERT_LEAF',
    'INSERT_UPPER',
    'INSERT_META',
    'SPLIT_L',
    'SPLIT_R',
    'INSERT_POST',
    'DEDUP',
    'DELETE',
    'UNLINK_PAGE',
    'UNLINK_PAGE_META',
    'NEWROOT',
    'MARK_PAGE_HALFDEAD',
    'VACUUM',
    'REUSE_PAGE',
    'META_CLEANUP',
  ],
  [rmgr.hash]: [
    'INIT_META_PAGE',
    'INIT_BITMAP_PAGE',
    'INSERT',
    'ADD_OVFL_PAGE',
    'SPLIT_ALLOCATE_PAGE',
    'SPLIT_PAGE',
    'SPLIT_COMPLETE',
    'MOVE_PAGE_CONTENTS',
    'SQUEEZE_PAGE',
    'DELETE',
    'SPLIT_CLEANUP',
    'UPDATE_META_PAGE',
    'VACUUM_ONE_PAGE',
  ],
  [rmgr.gin]: [
    undefined,
    'CREATE_PTREE',
    'INSERT',
    'SPLIT',
    'VACUUM_PAGE',
    'DELETE_PAGE',
    'UPDATE_META_PAGE',
    'INSERT_LISTPAGE',
    'DELETE_LISTPAGE',
    'VACUUM_DATA_LEAF_PAGE',
  ],
  [rmgr.gist]: ['PAGE_UPDATE', 'DELETE', 'PAGE_REUSE', 'PAGE_SPLIT', undefined, undefined, 'PAGE_DELETE', 'ASSIGN_LSN'],
  [rmgr.sequence]: ['LOG'],
  [rmgr.spGist]: [
    undefined,
    'ADD_LEAF',
    'MOVE_LEAFS',
    'ADD_NODE',
    'SPLIT_TUPLE',
    'PICKSPLIT',
    'VACUUM_LEAF',
    'VACUUM_ROOT',
    'VACUUM_REDIRECT',
  ],
  [rmgr.brin]: [...brin, undefined, undefined, ...brin.map((name) => `${name}+INIT`)],
  [rmgr.generic]: ['GENERIC'],
};

/** `Heap/HOT_UPDATE` and the like; an unknown opcode as `Heap/0xF0`. */
export function recordName(record: WalRecord): string {
  const op = record.info & 0xf0;
  const name = names[record.rmid]?.[op >> 4] ?? `0x${op.toString(16).toUpperCase()}`;
  return `${rmgrNames[record.rmid] ?? `rmgr ${record.rmid}`}/${name}`;
}

/** All types of PostgreSQL 15 that carry blocks, without +INIT forms. The full run must see every one of them. */
export const blockRecordNames: readonly string[] = [
  'XLOG/FPI',
  'XLOG/FPI_FOR_HINT',
  'Sequence/LOG',
  'Generic/GENERIC',
  ...heap.filter((name) => name !== 'TRUNCATE').map((name) => `Heap/${name}`),
  ...heap2.filter((name) => name !== 'REWRITE' && name !== 'NEW_CID').map((name) => `Heap2/${name}`),
  ...names[rmgr.btree]!.filter((name) => name !== 'REUSE_PAGE').map((name) => `Btree/${name}`),
  ...names[rmgr.hash]!.map((name) => `Hash/${name}`),
  ...names[rmgr.gin]!.filter((name) => name !== undefined).map((name) => `Gin/${name}`),
  'Gist/PAGE_UPDATE',
  'Gist/DELETE',
  'Gist/PAGE_SPLIT',
  'Gist/PAGE_DELETE',
  ...names[rmgr.spGist]!.filter((name) => name !== undefined).map((name) => `SPGist/${name}`),
  ...brin.map((name) => `BRIN/${name}`),
];

/** Types whose every block comes as an applied image: nothing of ours is compared, and why. */
export const imageOnly: ReadonlyMap<string, string> = new Map([
  ['XLOG/FPI', 'the image is the effect'],
  [
    'XLOG/FPI_FOR_HINT',
    'the image is the effect; with full_page_writes off the record comes without one and changes nothing',
  ],
  ['Gin/SPLIT', 'blocks 0 to 2 always carry an applied image'],
  ['Gin/VACUUM_PAGE', 'the block always carries an applied image'],
  ['Hash/SPLIT_PAGE', 'the block always carries an applied image'],
]);
