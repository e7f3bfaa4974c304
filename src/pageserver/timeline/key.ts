/**
 * Keys of storage: one flat, ordered key space per timeline, so that a layer, a shard or a scan is a key range.
 *
 * 18 bytes, big-endian, compared as bytes: u8 kind, u32 a, u32 b, u32 c, u8 d, u32 e. In memory a key is a KeyPrefix (all
 * but e) and the number e: pages of one relation share their prefix object.
 *
 * kind                a            b       c       d     e          value
 * 10 relation page    spcNode      dbNode  relNode fork  block      image, record, patch
 * 20 relation size    spcNode      dbNode  relNode fork  0          blob (size.ts) or tombstone: this key is the directory
 * 21 truncations      spcNode      dbNode  relNode fork  0          blob (size.ts)
 * 30 database         spcNode      dbNode  0       0     0          blob: u8 hasVersionFile; tombstone = dropped
 * 31 relation map     spcNode      dbNode  0       0     0          blob: pg_filenode.map
 * 40 SLRU page        SlruKind     0       0       0     page       image, patch, zero; tombstone = gone
 * 50 two-phase file   0            0       0       0     xid        blob; tombstone = gone
 * 60 checkpoint state 0            0       0       0     0          blob (ingest/checkpoint-state.ts)
 * 70 aux file         12 bytes of SHA-256(path) in a, b, c; 0, 0    blob: u16 path length, path, contents; tombstone = gone
 * 80 commit times     LSN high     LSN low 0       0     0          blob (commit-times.ts), named by its first commit
 *
 * Kinds are sorted so that pages (sharded one day by stripes of blocks) come first and everything a shard zero would hold
 * follows. Metadata is sparse: one key per thing, never a list that grows (a list of 100,000 relations would be rewritten
 * at every CREATE TABLE).
 */
import {assert} from '#runtime/assert.ts';
import {sha256} from '#runtime/crypto.ts';
import type {Lsn} from '#postgres/lsn.ts';
import type {RelTag} from '#postgres/relation.ts';
import type {SlruKind} from '#postgres/slru.ts';

export const keyBytes = 18;

export const keyKind = {
  relPage: 0x10,
  relSize: 0x20,
  truncations: 0x21,
  database: 0x30,
  relationMap: 0x31,
  slruPage: 0x40,
  twoPhase: 0x50,
  checkpointState: 0x60,
  auxFile: 0x70,
  commitTimes: 0x80,
} as const;

export interface KeyPrefix {
  readonly kind: number;
  readonly a: number;
  readonly b: number;
  readonly c: number;
  readonly d: number;
}

export interface Key {
  readonly prefix: KeyPrefix;
  readonly e: number;
}

/** Keys from `start` (in) to `end` (out), encoded. */
export interface KeyRange {
  readonly start: Buffer;
  readonly end: Buffer;
}

function prefix(kind: number, a: number, b: number, c: number, d: number): KeyPrefix {
  return {kind, a, b, c, d};
}

export function relPagePrefix(rel: RelTag): KeyPrefix {
  return prefix(keyKind.relPage, rel.spcNode, rel.dbNode, rel.relNode, rel.fork);
}

export function relSizeKey(rel: RelTag): Key {
  return {prefix: prefix(keyKind.relSize, rel.spcNode, rel.dbNode, rel.relNode, rel.fork), e: 0};
}

export function truncationsKey(rel: RelTag): Key {
  return {prefix: prefix(keyKind.truncations, rel.spcNode, rel.dbNode, rel.relNode, rel.fork), e: 0};
}

export function databaseKey(spcNode: number, dbNode: number): Key {
  return {prefix: prefix(keyKind.database, spcNode, dbNode, 0, 0), e: 0};
}

export function relationMapKey(spcNode: number, dbNode: number): Key {
  return {prefix: prefix(keyKind.relationMap, spcNode, dbNode, 0, 0), e: 0};
}

const slruPrefixes = [0, 1, 2, 3].map((kind) => prefix(keyKind.slruPage, kind, 0, 0, 0));

export function slruPrefix(kind: SlruKind): KeyPrefix {
  return slruPrefixes[kind]!;
}

const twoPhasePrefix = prefix(keyKind.twoPhase, 0, 0, 0, 0);

export function twoPhaseKey(xid: number): Key {
  return {prefix: twoPhasePrefix, e: xid};
}

export const checkpointStateKey: Key = {prefix: prefix(keyKind.checkpointState, 0, 0, 0, 0), e: 0};

export function auxFileKey(path: string): Key {
  const hash = sha256(Buffer.from(path, 'utf8'));
  return {
    prefix: prefix(keyKind.auxFile, hash.readUInt32BE(0), hash.readUInt32BE(4), hash.readUInt32BE(8), 0),
    e: 0,
  };
}

export function commitTimesKey(firstCommitLsn: Lsn): Key {
  const low = firstCommitLsn % 4294967296;
  return {prefix: prefix(keyKind.commitTimes, (firstCommitLsn - low) / 4294967296, low, 0, 0), e: 0};
}

export function samePrefix(x: KeyPrefix, y: KeyPrefix): boolean {
  return x === y || (x.c === y.c && x.b === y.b && x.a === y.a && x.d === y.d && x.kind === y.kind);
}

export function comparePrefixes(x: KeyPrefix, y: KeyPrefix): number {
  return x.kind - y.kind || x.a - y.a || x.b - y.b || x.c - y.c || x.d - y.d;
}

export function compareKeys(x: Key, y: Key): number {
  return comparePrefixes(x.prefix, y.prefix) || x.e - y.e;
}

/** Writes the 18 bytes of a key. */
export function writeKey(into: Buffer, offset: number, p: KeyPrefix, e: number): void {
  into[offset] = p.kind;
  into.writeUInt32BE(p.a, offset + 1);
  into.writeUInt32BE(p.b, offset + 5);
  into.writeUInt32BE(p.c, offset + 9);
  into[offset + 13] = p.d;
  into.writeUInt32BE(e, offset + 14);
}

export function encodeKey(key: Key): Buffer {
  const out = Buffer.alloc(keyBytes);
  writeKey(out, 0, key.prefix, key.e);
  return out;
}

export function readKey(from: Buffer, offset: number): Key {
  assert(offset + keyBytes <= from.length, 'a key lies inside its buffer');
  return {
    prefix: prefix(
      from[offset]!,
      from.readUInt32BE(offset + 1),
      from.readUInt32BE(offset + 5),
      from.readUInt32BE(offset + 9),
      from[offset + 13]!,
    ),
    e: from.readUInt32BE(offset + 14),
  };
}

/** <0, 0, >0: the encoded key at `offset` against (p, e). The search loop of layer indexes: no allocation, no native call. */
export function compareKeyAt(from: Buffer, offset: number, p: KeyPrefix, e: number): number {
  return (
    from[offset]! - p.kind ||
    u32(from, offset + 1) - p.a ||
    u32(from, offset + 5) - p.b ||
    u32(from, offset + 9) - p.c ||
    from[offset + 13]! - p.d ||
    u32(from, offset + 14) - e
  );
}

function u32(b: Buffer, at: number): number {
  return ((b[at]! << 24) | (b[at + 1]! << 16) | (b[at + 2]! << 8) | b[at + 3]!) >>> 0;
}

/** The next 18 bytes in order: where a range that ends with `key` (inclusive) ends, exclusively. */
export function keyAfter(key: Buffer): Buffer {
  const next = Buffer.from(key);
  for (let i = keyBytes - 1; i >= 0; i--) {
    if (next[i] === 0xff) next[i] = 0;
    else {
      next[i]!++;
      return next;
    }
  }
  return Buffer.alloc(keyBytes, 0xff); // no key is larger
}

/** The largest key below `end`. */
export function keyBefore(end: Buffer): Buffer {
  const key = Buffer.from(end);
  for (let i = keyBytes - 1; i >= 0; i--) {
    if (key[i] === 0) key[i] = 0xff;
    else {
      key[i]!--;
      break;
    }
  }
  return key;
}

export const wholeKeySpace: KeyRange = {start: Buffer.alloc(keyBytes), end: Buffer.alloc(keyBytes, 0xff)};

/** All keys of a kind, or of a kind with its first fields fixed. */
export function rangeOf(kind: number, a?: number, b?: number): KeyRange {
  const start = encodeKey({prefix: prefix(kind, a ?? 0, b ?? 0, 0, 0), e: 0});
  const end = Buffer.alloc(keyBytes, 0xff);
  end[0] = kind;
  if (a !== undefined) end.writeUInt32BE(a, 1);
  if (b !== undefined) end.writeUInt32BE(b, 5);
  // The largest key of a range has all bits set in its free fields; none of our keys does, so it may be left out.
  return {start, end};
}

/** `10:1663/5/16384.0:7`: kind in hex, fields, for errors and logs. */
export function formatKey(key: Key): string {
  const {kind, a, b, c, d} = key.prefix;
  return `${kind.toString(16)}:${a}/${b}/${c}.${d}:${key.e}`;
}
