/**
 * Everything a standby has in its files at an LSN against what the timeline answers there, byte for byte, without masks.
 *
 * Not different, and counted apart:
 *   empty maps   a visibility map that holds nothing but page headers: the standby makes such files by looking, and no record
 *                says so (wal-redo.md 9.5). Ours must then not exist, or hold no bit either.
 *   in memory    a prepared transaction since the last checkpoint: a standby writes its file at the next one.
 * FSM forks are not compared: a standby guesses at them.
 */
import {closeSync, existsSync, openSync, readFileSync, readSync, readdirSync, statSync} from 'node:fs';
import {join} from 'node:path';
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {precedesModulo, xidPrecedes} from '#postgres/checkpoint.ts';
import type {ControlFile} from '#postgres/control-file.ts';
import {type Lsn, formatLsn, readPageLsn} from '#postgres/lsn.ts';
import {type ForkNumber, type RelTag, blockSize, fork, formatRel, relSegmentBlocks} from '#postgres/relation.ts';
import {parseSlruSegmentName, slruDirectory, slruKinds, slruPagesPerSegment} from '#postgres/slru.ts';
import type {ComparedReader} from './reader.ts';
import type {Target, WalPlan} from './wal.ts';

/** Pages per read of the timeline, as many as a compute asks for at most. A stripe of a shard is a multiple of it. */
const batch = 64;
const pageHeaderBytes = 24;
const zeroPage = Buffer.alloc(blockSize);
const forkSuffixes = ['', '_fsm', '_vm', '_init'] as const;

export class Comparison {
  /** By kind: main, vm, init, pg_xact, … */
  readonly pages = new Map<string, number>();
  equal = 0;
  differentPages = 0;
  /** Sizes, existence, files, counters. */
  differentFacts = 0;
  /** Relation forks whose existence and size are equal. */
  forks = 0;
  /** Relation maps, directories, two-phase files, tablespaces, counters: equal ones. */
  facts = 0;
  emptyMaps = 0;
  inMemory = 0;
  readonly messages: string[] = [];

  get compared(): number {
    return this.equal + this.differentPages;
  }

  get different(): number {
    return this.differentPages + this.differentFacts;
  }

  page(kind: string, same: boolean, describe: () => string): void {
    this.pages.set(kind, (this.pages.get(kind) ?? 0) + 1);
    if (same) this.equal++;
    else {
      this.differentPages++;
      this.#say(describe());
    }
  }

  fact(same: boolean, describe: () => string): void {
    if (same) this.facts++;
    else this.differs(describe());
  }

  differs(message: string): void {
    this.differentFacts++;
    this.#say(message);
  }

  #say(message: string): void {
    if (this.messages.length < 1000) this.messages.push(message);
  }
}

interface Directory {
  readonly spcNode: number;
  readonly dbNode: number;
  readonly path: string;
}

export interface CompareOptions {
  readonly timeline: ComparedReader;
  /** Who knows what was before the target, where that is not the timeline: it may begin there. */
  readonly past?: ComparedReader;
  readonly dataDir: string;
  readonly target: Target;
  readonly plan: WalPlan;
  /** The standby's, after its restartpoint. */
  readonly control: ControlFile;
}

export async function compareAt(options: CompareOptions): Promise<Comparison> {
  const result = new Comparison();
  await compareRelations(options, result);
  await compareSlrus(options, result);
  await compareTwoPhase(options, result);
  await compareTablespaces(options, result);
  await compareCounters(options, result);
  return result;
}

// ---- relations

async function compareRelations(options: CompareOptions, result: Comparison): Promise<void> {
  const {timeline, dataDir, target} = options;
  const at = target.lsn;
  const directories = listDirectories(dataDir);
  const ours = await timeline.listDatabases(at);
  const known = new Set(directories.map(({spcNode, dbNode}) => `${spcNode}/${dbNode}`));
  for (const {spcNode, dbNode, hasVersionFile} of ours) {
    if (known.has(`${spcNode}/${dbNode}`)) continue;
    const relations = await timeline.listRelations(spcNode, dbNode, at);
    // A tablespace's directory of a database goes with the last of its files there, unseen by WAL.
    result.fact(!hasVersionFile && relations.length === 0, () => `database ${spcNode}/${dbNode} should not exist`);
  }
  for (const directory of directories) {
    const {spcNode, dbNode, path} = directory;
    const entry = ours.find((d) => d.spcNode === spcNode && d.dbNode === dbNode);
    const files = relationFiles(join(dataDir, path));
    const hasVersionFile = existsSync(join(dataDir, path, 'PG_VERSION'));
    if (dbNode !== 0 && (entry !== undefined || files.size > 0 || hasVersionFile))
      result.fact(
        entry?.hasVersionFile === hasVersionFile,
        () => `${path}: ${entry === undefined ? 'missing' : `has PG_VERSION: ${entry.hasVersionFile}`}`,
      );
    const mapFile = join(dataDir, path, 'pg_filenode.map');
    const theirMap = existsSync(mapFile) ? readFileSync(mapFile) : undefined;
    const ourMap = await timeline.relationMap(spcNode, dbNode, at);
    result.fact(
      theirMap === undefined ? ourMap === undefined : ourMap?.equals(theirMap) === true,
      () => `${path}/pg_filenode.map: ours ${ourMap === undefined ? 'is missing' : 'differs'}`,
    );
    const listed = new Map((await timeline.listRelations(spcNode, dbNode, at)).map((e) => [formatRel(e.rel), e]));
    for (const [name, theirs] of files) {
      const rel: RelTag = {spcNode, dbNode, relNode: theirs.relNode, fork: theirs.fork};
      const entryOfRel = listed.get(formatRel(rel));
      listed.delete(formatRel(rel));
      if (rel.fork === fork.fsm) continue;
      await compareFork(options, result, rel, join(dataDir, path, name), theirs.blocks, entryOfRel?.blocks);
    }
    for (const {rel, blocks} of listed.values())
      if (rel.fork !== fork.fsm) result.differs(`${formatRel(rel)} of ${blocks} blocks should not exist`);
  }
}

async function compareFork(
  {timeline, target}: CompareOptions,
  result: Comparison,
  rel: RelTag,
  path: string,
  theirBlocks: number,
  ourBlocks: number | undefined,
): Promise<void> {
  if (rel.fork === fork.vm && (ourBlocks === undefined || ourBlocks < theirBlocks)) {
    const from = ourBlocks ?? 0;
    let empty = true;
    forEachPage(path, from, theirBlocks, (page) => {
      if (!page.subarray(pageHeaderBytes).equals(zeroPage.subarray(pageHeaderBytes))) empty = false;
    });
    if (empty) {
      result.emptyMaps++;
      if (ourBlocks === undefined) return;
      theirBlocks = from;
    }
  }
  if (ourBlocks !== theirBlocks) {
    result.differs(`${formatRel(rel)}: ${ourBlocks ?? 'no'} blocks, the standby has ${theirBlocks}`);
    if (ourBlocks === undefined) return;
  } else {
    result.forks++;
  }
  const count = Math.min(ourBlocks, theirBlocks);
  let ours: Buffer[] = [];
  for (let start = 0; start < count; start += batch) {
    const end = Math.min(start + batch, count);
    try {
      ours = await timeline.getRelPages(rel, start, end - start, target.lsn);
    } catch (error) {
      ours = [];
      result.differs((error as Error).message);
    }
    forEachPage(path, start, end, (theirs, block) => {
      const page = ours[block - start];
      result.page(['main', 'fsm', 'vm', 'init'][rel.fork]!, page !== undefined && page.equals(theirs), () =>
        describePage(`${formatRel(rel)} block ${block}`, page, theirs),
      );
    });
  }
}

function describePage(name: string, ours: Buffer | undefined, theirs: Buffer): string {
  if (ours === undefined) return `${name}: missing`;
  let at = 0;
  let count = 0;
  for (let i = blockSize - 1; i >= 0; i--)
    if (ours[i] !== theirs[i]) {
      at = i;
      count++;
    }
  return (
    `${name}: ${count} bytes differ, the first at ${at}: ours ${ours.toString('hex', at, at + 8)}, ` +
    `the standby's ${theirs.toString('hex', at, at + 8)}; page LSN ${formatLsn(readPageLsn(ours))} and ${formatLsn(readPageLsn(theirs))}`
  );
}

/** Calls `use` with pages [from, to) of a fork whose first segment file is `path`. The page is reused. */
function forEachPage(path: string, from: number, to: number, use: (page: Buffer, block: number) => void): void {
  const bytes = Buffer.alloc(batch * blockSize);
  let file: number | undefined;
  let openSegment = -1;
  for (let start = from; start < to;) {
    const segment = Math.floor(start / relSegmentBlocks);
    const end = Math.min(to, start + batch, (segment + 1) * relSegmentBlocks);
    if (segment !== openSegment) {
      if (file !== undefined) closeSync(file);
      file = openSync(segment === 0 ? path : `${path}.${segment}`, 'r');
      openSegment = segment;
    }
    readSync(file!, bytes, 0, (end - start) * blockSize, (start % relSegmentBlocks) * blockSize);
    for (let block = start; block < end; block++)
      use(bytes.subarray((block - start) * blockSize, (block - start + 1) * blockSize), block);
    start = end;
  }
  if (file !== undefined) closeSync(file);
}

/** Every directory that can hold relation files. */
function listDirectories(dataDir: string): Directory[] {
  const list: Directory[] = [{spcNode: 1664, dbNode: 0, path: 'global'}];
  for (const db of readdirSync(join(dataDir, 'base')))
    if (/^\d+$/.test(db)) list.push({spcNode: 1663, dbNode: Number(db), path: `base/${db}`});
  for (const oid of readdirSync(join(dataDir, 'pg_tblspc')))
    for (const version of readdirSync(join(dataDir, 'pg_tblspc', oid)))
      if (version.startsWith('PG_15_'))
        for (const db of readdirSync(join(dataDir, 'pg_tblspc', oid, version)))
          if (/^\d+$/.test(db))
            list.push({spcNode: Number(oid), dbNode: Number(db), path: `pg_tblspc/${oid}/${version}/${db}`});
  return list;
}

/** By name of the first segment file. */
function relationFiles(directory: string): Map<string, {relNode: number; fork: ForkNumber; blocks: number}> {
  const files = new Map<string, {relNode: number; fork: ForkNumber; blocks: number}>();
  for (const name of readdirSync(directory)) {
    const match = /^((\d+)(_fsm|_vm|_init)?)(?:\.\d+)?$/.exec(name);
    if (match === null) continue;
    const blocks = statSync(join(directory, name)).size / blockSize;
    const known = files.get(match[1]!);
    if (known !== undefined) known.blocks += blocks;
    else {
      const forkNumber = forkSuffixes.indexOf((match[3] ?? '') as (typeof forkSuffixes)[number]) as ForkNumber;
      files.set(match[1]!, {relNode: Number(match[2]), fork: forkNumber, blocks});
    }
  }
  return files;
}

// ---- transaction status

async function compareSlrus({timeline, dataDir, target}: CompareOptions, result: Comparison): Promise<void> {
  for (const kind of slruKinds) {
    const name = slruDirectory(kind);
    const numbers = await timeline.slruPages(kind, target.lsn);
    const pages = await timeline.getSlruPages(kind, numbers, target.lsn);
    const ours = new Map(numbers.map((page, i) => [page, pages[i]!]));
    for (const file of readdirSync(join(dataDir, name))) {
      const segment = parseSlruSegmentName(file);
      if (segment === undefined) continue;
      const bytes = readFileSync(join(dataDir, name, file));
      for (let i = 0; i < bytes.length / blockSize; i++) {
        const theirs = bytes.subarray(i * blockSize, (i + 1) * blockSize);
        const number = segment * slruPagesPerSegment + i;
        const page = ours.get(number);
        ours.delete(number);
        // A file may begin with pages that were never written.
        result.page(name, (page ?? zeroPage).equals(theirs), () =>
          describePage(`${name} page ${number}`, page, theirs),
        );
      }
    }
    for (const page of ours.keys()) result.differs(`${name} page ${page} should not exist`);
  }
}

// ---- small files

async function compareTwoPhase(options: CompareOptions, result: Comparison): Promise<void> {
  const {timeline, dataDir, target, plan, control} = options;
  const ours = new Map((await timeline.twoPhaseFiles(target.lsn)).map((file) => [file.xid, file.contents]));
  for (const name of readdirSync(join(dataDir, 'pg_twophase'))) {
    const xid = parseInt(name, 16);
    const contents = ours.get(xid);
    ours.delete(xid);
    result.fact(
      contents?.equals(readFileSync(join(dataDir, 'pg_twophase', name))) === true,
      () => `pg_twophase/${name}: ours ${contents === undefined ? 'is missing' : 'differs'}`,
    );
  }
  for (const xid of ours.keys()) {
    const preparedLsn = plan.prepares.get(xid);
    if (preparedLsn !== undefined && preparedLsn > control.checkPoint.redoLsn) result.inMemory++;
    else result.differs(`two-phase file of transaction ${xid} should not exist`);
  }
}

async function compareTablespaces({timeline, dataDir, target}: CompareOptions, result: Comparison): Promise<void> {
  const ours = (await timeline.auxFiles(target.lsn)).map((file) => file.path).filter((p) => p.startsWith('pg_tblspc/'));
  const theirs = readdirSync(join(dataDir, 'pg_tblspc')).map((oid) => `pg_tblspc/${oid}`);
  result.fact(
    ours.sort().join() === theirs.sort().join(),
    () => `tablespaces: ours ${ours.join()}, the standby's ${theirs.join()}`,
  );
}

// ---- counters

/** At a checkpoint record, what pg_control says of it; at the target, the parameters, which WAL changes at once. */
async function compareCounters(options: CompareOptions, result: Comparison): Promise<void> {
  const {timeline, past = timeline, target, control} = options;
  const {checkpoint} = target;
  result.fact(
    control.checkPointLsn === checkpoint.startLsn,
    () =>
      `the standby's last restartpoint is at ${formatLsn(control.checkPointLsn)}, expected ${formatLsn(checkpoint.startLsn)}: its pages were not written`,
  );
  const read = async (of: ComparedReader, at: Lsn): Promise<ControlFile> =>
    CheckpointState.decode((await of.checkpointState(at)) ?? Buffer.alloc(0)).control;
  const now = await read(timeline, target.lsn);
  for (const name of [
    'walLevel',
    'walLogHints',
    'maxConnections',
    'maxWorkerProcesses',
    'maxWalSenders',
    'maxPreparedTransactions',
    'maxLocksPerTransaction',
    'trackCommitTimestamp',
  ] as const)
    result.fact(now[name] === control[name], () => `pg_control ${name}: ${now[name]}, expected ${control[name]}`);

  const ours = (await read(past, checkpoint.endLsn)).checkPoint;
  const theirs = control.checkPoint;
  if (checkpoint.shutdown) {
    result.fact(
      ours.bytes.equals(theirs.bytes),
      () => `the shutdown checkpoint differs: ${ours.bytes.toString('hex')}`,
    );
    return;
  }
  // An online checkpoint's counters were read while others ran: ours may be ahead, never behind.
  const counter = (name: 'oldestXid' | 'oldestMulti' | 'nextMulti' | 'nextMultiOffset', behind: boolean): void =>
    result.fact(!behind, () => `${name} is ${ours[name]}, the checkpoint says ${theirs[name]}`);
  counter('oldestXid', xidPrecedes(ours.oldestXid, theirs.oldestXid));
  counter('oldestMulti', precedesModulo(ours.oldestMulti, theirs.oldestMulti));
  counter('nextMulti', precedesModulo(ours.nextMulti, theirs.nextMulti));
  counter('nextMultiOffset', precedesModulo(ours.nextMultiOffset, theirs.nextMultiOffset));
  result.fact(
    ours.nextXid >= theirs.nextXid,
    () => `nextXid is ${ours.nextXid}, the checkpoint says ${theirs.nextXid}`,
  );
  result.fact(
    ours.nextOid >= theirs.nextOid,
    () => `nextOid is ${ours.nextOid}, the checkpoint says ${theirs.nextOid}`,
  );
  if (ours.oldestXid === theirs.oldestXid)
    result.fact(
      ours.oldestXidDb === theirs.oldestXidDb,
      () => `oldestXidDb ${ours.oldestXidDb}, not ${theirs.oldestXidDb}`,
    );
}
