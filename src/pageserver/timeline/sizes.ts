/**
 * Sizes of relation forks, and what keeps old pages from showing through.
 *
 * The size value of a fork (key kind 20) is 13 bytes: u32 blocks, u8 flags, u64 floorLsn. Values of its pages below floorLsn
 * belong to an earlier fork of the same name. Flag 1: the fork has been cut; the truncations value (key kind 21) then lists
 * {u32 toBlock, u64 lsn}, both ascending: pages from toBlock on have nothing older than lsn. So neither a truncation nor
 * an extension writes anything per block, and a block without WAL below the size reads as zeros.
 */
import {type Lsn, readLsn64, writeLsn64} from '#postgres/lsn.ts';
import type {ForkNumber, RelTag} from '#postgres/relation.ts';

export interface Truncation {
  readonly toBlock: number;
  readonly lsn: Lsn;
}

/** A fork as of an LSN. */
export interface RelInfo {
  /** -1: the fork does not exist. */
  readonly blocks: number;
  readonly floorLsn: Lsn;
  readonly truncations: readonly Truncation[];
}

export const relMissing: RelInfo = {blocks: -1, floorLsn: 0 as Lsn, truncations: []};

/** Values of the block below this LSN are not its own. */
export function blockFloor(info: RelInfo, block: number): Lsn {
  const {truncations} = info;
  for (let i = truncations.length - 1; i >= 0; i--) if (block >= truncations[i]!.toBlock) return truncations[i]!.lsn;
  return info.floorLsn;
}

/** The fork after it got this size at `lsn`. */
export function resized(info: RelInfo, blocks: number, lsn: Lsn): RelInfo {
  if (info.blocks < 0) return {blocks, floorLsn: lsn, truncations: []};
  if (blocks >= info.blocks) return {...info, blocks};
  if (blocks === 0) return {blocks, floorLsn: lsn, truncations: []};
  // A deeper cut makes the shallower ones before it void.
  const kept = info.truncations.filter((t) => t.toBlock < blocks);
  return {...info, blocks, truncations: [...kept, {toBlock: blocks, lsn}]};
}

const flagHasTruncations = 1;
const sizeBytes = 13;
const truncationBytes = 12;

export function encodeSize(info: RelInfo): Buffer {
  const b = Buffer.allocUnsafe(sizeBytes);
  b.writeUInt32LE(info.blocks, 0);
  b[4] = info.truncations.length > 0 ? flagHasTruncations : 0;
  writeLsn64(b, 5, info.floorLsn);
  return b;
}

/** Throws RangeError when the value is malformed. */
export function decodeSize(b: Buffer): {blocks: number; floorLsn: Lsn; hasTruncations: boolean} {
  if (b.length !== sizeBytes) throw new RangeError(`relation size value of ${b.length} bytes`);
  return {blocks: b.readUInt32LE(0), floorLsn: readLsn64(b, 5), hasTruncations: (b[4]! & flagHasTruncations) !== 0};
}

export function encodeTruncations(truncations: readonly Truncation[]): Buffer {
  const b = Buffer.allocUnsafe(truncations.length * truncationBytes);
  truncations.forEach((t, i) => {
    b.writeUInt32LE(t.toBlock, i * truncationBytes);
    writeLsn64(b, i * truncationBytes + 4, t.lsn);
  });
  return b;
}

export function decodeTruncations(b: Buffer): Truncation[] {
  if (b.length % truncationBytes !== 0) throw new RangeError(`truncations value of ${b.length} bytes`);
  const out: Truncation[] = [];
  for (let at = 0; at < b.length; at += truncationBytes)
    out.push({toBlock: b.readUInt32LE(at), lsn: readLsn64(b, at + 4)});
  return out;
}

/** A power of two. */
const frontSize = 256;

/** Of a timeline that rests. Never written to. */
const noFront: (CachedRel | undefined)[] = [];

/** What is in memory about one fork. */
interface CachedRel extends RelTag {
  next: CachedRel | undefined;
  used: boolean;
  /** As of the last record, since `latestSince`. */
  latest: RelInfo | undefined;
  latestSince: Lsn;
  /** A stretch of history [pastFrom, pastUntil] during which the fork was like `past`. */
  past: RelInfo | undefined;
  pastFrom: Lsn;
  pastUntil: Lsn;
}

/**
 * Sizes in memory, bounded. `latest` is what ingest maintains; `past` serves readers at older LSNs. Entries go only in
 * trim(), which the write path calls between records: what ingest has looked up stays until the record is done.
 */
export class RelSizeCache {
  readonly #entriesMax: number;
  /** By relNode * 4 + fork; different databases are a list. */
  #table = new Map<number, CachedRel>();
  #count = 0;
  /** What was found last for a hash of relNode and fork: ingest asks for every block of every record. */
  #front: (CachedRel | undefined)[] = noFront;

  constructor(entriesMax: number) {
    this.#entriesMax = entriesMax;
  }

  get size(): number {
    return this.#count;
  }

  latest(spcNode: number, dbNode: number, relNode: number, fork: number): RelInfo | undefined {
    const entry = this.#find(spcNode, dbNode, relNode, fork);
    if (entry === undefined) return undefined;
    entry.used = true;
    return entry.latest;
  }

  /** The fork as of `at`, when memory knows. */
  at(rel: RelTag, at: Lsn): RelInfo | undefined {
    const entry = this.#find(rel.spcNode, rel.dbNode, rel.relNode, rel.fork);
    if (entry === undefined) return undefined;
    entry.used = true;
    if (entry.latest !== undefined && at >= entry.latestSince) return entry.latest;
    if (entry.past !== undefined && at >= entry.pastFrom && at <= entry.pastUntil) return entry.past;
    return undefined;
  }

  setLatest(rel: RelTag, info: RelInfo, since: Lsn): void {
    const entry = this.#add(rel);
    if (entry.latest !== undefined && entry.past === undefined && since > entry.latestSince) {
      // Readers at a fixed LSN go on while ingest changes the size under them.
      entry.past = entry.latest;
      entry.pastFrom = entry.latestSince;
      entry.pastUntil = (since - 1) as Lsn;
    }
    entry.latest = info;
    entry.latestSince = since;
  }

  /** A look-up in storage has shown the fork to be so from `from` to `until`. */
  setPast(rel: RelTag, info: RelInfo, from: Lsn, until: Lsn): void {
    const entry = this.#add(rel);
    if (entry.past !== undefined && entry.pastFrom === from && entry.pastUntil >= until) return;
    entry.past = info;
    entry.pastFrom = from;
    entry.pastUntil = until;
  }

  /** A database was dropped at `lsn`: none of its forks exists. */
  dropDatabase(spcNode: number, dbNode: number, lsn: Lsn): void {
    for (const head of this.#table.values())
      for (let entry: CachedRel | undefined = head; entry !== undefined; entry = entry.next)
        if (entry.dbNode === dbNode && entry.spcNode === spcNode && entry.latest !== undefined)
          this.setLatest(entry, relMissing, lsn);
  }

  /** Forgets everything; ingest must not be in the middle of a record. */
  clear(): void {
    this.#table.clear();
    this.#front = noFront;
    this.#count = 0;
  }

  /** Makes room when there are too many: those not used since the last time go. */
  trim(): void {
    if (this.#count <= this.#entriesMax) return;
    const keep = Math.floor(this.#entriesMax * 0.75);
    const old = this.#table;
    this.#table = new Map();
    this.#front = noFront;
    this.#count = 0;
    const all: CachedRel[] = [];
    for (const head of old.values())
      for (let entry: CachedRel | undefined = head; entry !== undefined; entry = entry.next) all.push(entry);
    all.sort((x, y) => Number(y.used) - Number(x.used));
    for (const entry of all.slice(0, keep)) {
      entry.used = false;
      this.#link(entry);
    }
  }

  #find(spcNode: number, dbNode: number, relNode: number, fork: number): CachedRel | undefined {
    const at = (relNode * 4 + fork) & (frontSize - 1);
    const front = this.#front[at];
    if (
      front !== undefined &&
      front.relNode === relNode &&
      front.fork === fork &&
      front.dbNode === dbNode &&
      front.spcNode === spcNode
    )
      return front;
    let entry = this.#table.get(relNode * 4 + fork);
    while (entry !== undefined && (entry.dbNode !== dbNode || entry.spcNode !== spcNode)) entry = entry.next;
    if (entry !== undefined) {
      if (this.#front === noFront) this.#front = new Array<CachedRel | undefined>(frontSize).fill(undefined);
      this.#front[at] = entry;
    }
    return entry;
  }

  #add(rel: RelTag): CachedRel {
    const found = this.#find(rel.spcNode, rel.dbNode, rel.relNode, rel.fork);
    if (found !== undefined) return found;
    const entry: CachedRel = {
      spcNode: rel.spcNode,
      dbNode: rel.dbNode,
      relNode: rel.relNode,
      fork: rel.fork as ForkNumber,
      next: undefined,
      used: true,
      latest: undefined,
      latestSince: 0 as Lsn,
      past: undefined,
      pastFrom: 0 as Lsn,
      pastUntil: 0 as Lsn,
    };
    this.#link(entry);
    return entry;
  }

  #link(entry: CachedRel): void {
    const key = entry.relNode * 4 + entry.fork;
    entry.next = this.#table.get(key);
    this.#table.set(key, entry);
    this.#count++;
  }
}
