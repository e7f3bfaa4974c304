/** Proof that a branch can be read at an LSN: every page of every relation is rebuilt, and everything a compute starts from. */
import type {Lsn} from '#postgres/lsn.ts';
import {formatLsn} from '#postgres/lsn.ts';
import {blockSize, formatRel, globalTablespace} from '#postgres/relation.ts';
import {slruKinds} from '#postgres/slru.ts';
import {pagesPerRequestMax} from '#wire/pages.ts';
import {TimelineError, type TimelineReader} from '../timeline/timeline-reader.ts';

/** Layout of PostgreSQL pages since 8.3: page size in the high byte, version 4 in the low one. */
const pageSizeVersion = blockSize | 4;
const pageHeaderBytes = 24;
/** Listed one by one in the answer; the counts are of all. */
const problemsMax = 100;

export interface Verification {
  readonly lsn: string;
  readonly databases: number;
  /** Forks of relations. */
  readonly forks: number;
  readonly pages: number;
  /** All zeros: never written since the relation was extended. */
  readonly newPages: number;
  readonly slruPages: number;
  readonly problemCount: number;
  readonly problems: readonly string[];
}

/**
 * Reads everything at `at`. What cannot be read is a problem of the answer, not an error. `pause` lets others of the process
 * have their turn: reads that caches answer would not.
 */
export async function verifyTimeline(
  timeline: TimelineReader,
  at: Lsn,
  pause: () => Promise<void>,
): Promise<Verification> {
  let forks = 0;
  let pages = 0;
  let newPages = 0;
  let slruPages = 0;
  let problemCount = 0;
  const problems: string[] = [];
  const note = (what: string, error: unknown): void => {
    problemCount++;
    if (problems.length < problemsMax)
      problems.push(`${what}: ${error instanceof Error ? error.message : String(error)}`);
  };
  const attempt = async <T>(what: string, read: () => Promise<T>): Promise<T | undefined> => {
    try {
      return await read();
    } catch (error) {
      if (!(error instanceof TimelineError)) throw error;
      note(what, error);
      return undefined;
    }
  };
  await timeline.waitForLsn(at);
  const databases = (await attempt('the databases', () => timeline.listDatabases(at))) ?? [];
  const places = [
    ...databases.map(({spcNode, dbNode}) => ({spcNode, dbNode})),
    ...(databases.some(({dbNode}) => dbNode === 0) ? [] : [{spcNode: globalTablespace, dbNode: 0}]),
  ];
  for (const {spcNode, dbNode} of places) {
    const where = `database ${dbNode} in tablespace ${spcNode}`;
    const relations = (await attempt(`relations of ${where}`, () => timeline.listRelations(spcNode, dbNode, at))) ?? [];
    for (const {rel, blocks} of relations) {
      forks++;
      for (let block = 0; block < blocks; block += pagesPerRequestMax) {
        if (!timeline.ownsBlock(rel, block)) continue; // stripes begin at multiples of pagesPerRequestMax
        const count = Math.min(pagesPerRequestMax, blocks - block);
        const name = `${formatRel(rel)} from block ${block}`;
        const read = await attempt(name, () => timeline.getRelPages(rel, block, count, at));
        await pause();
        if (read === undefined) continue;
        if (read.length !== count) note(name, `${read.length} pages, ${count} expected`);
        for (const [i, page] of read.entries()) {
          pages++;
          const reason = pageProblem(page);
          if (reason === 'new') newPages++;
          else if (reason !== undefined) note(`${formatRel(rel)} block ${block + i}`, reason);
        }
      }
    }
    await attempt(`relation map of ${where}`, () => timeline.relationMap(spcNode, dbNode, at));
  }
  for (const kind of slruKinds) {
    const numbers = (await attempt(`SLRU ${kind}`, () => timeline.slruPages(kind, at))) ?? [];
    for (let i = 0; i < numbers.length; i += pagesPerRequestMax) {
      const some = numbers.slice(i, i + pagesPerRequestMax);
      await pause();
      slruPages +=
        (await attempt(`SLRU ${kind} page ${some[0]}`, () => timeline.getSlruPages(kind, some, at)))?.length ?? 0;
    }
  }
  await attempt('two-phase files', () => timeline.twoPhaseFiles(at));
  await attempt('auxiliary files', () => timeline.auxFiles(at));
  const state = await attempt('the checkpoint', () => timeline.checkpointState(at));
  if (state === undefined && problemCount === 0) note('the checkpoint', 'does not exist');
  return {
    lsn: formatLsn(at),
    databases: databases.length,
    forks,
    pages,
    newPages,
    slruPages,
    problemCount,
    problems,
  };
}

/** What is wrong with a page's header; 'new' for one of zeros; undefined: nothing. (bufpage.c, PageIsVerifiedExtended.) */
export function pageProblem(page: Buffer): string | undefined {
  const lower = page.readUInt16LE(12);
  const upper = page.readUInt16LE(14);
  const special = page.readUInt16LE(16);
  if (upper === 0) return page.every((byte) => byte === 0) ? 'new' : undefined; // free space and visibility maps
  const sizeVersion = page.readUInt16LE(18);
  if (sizeVersion !== pageSizeVersion) return `page size and version ${sizeVersion.toString(16)}`;
  if (lower < pageHeaderBytes || lower > upper || upper > special || special > blockSize || special % 8 !== 0)
    return `impossible header: lower ${lower}, upper ${upper}, special ${special}`;
  return undefined;
}
