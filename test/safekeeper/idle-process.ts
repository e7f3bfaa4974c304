/**
 * Run by idle.test.ts with --expose-gc: one safekeeper with many timelines, each written to once. Prints one line of JSON:
 * memory of a timeline that is loaded, and of one that rests; how many are loaded, and WAL files on the disk.
 */
import type {Lsn} from '#postgres/lsn.ts';
import {Cell, Writer, startLsn, until} from './cell.ts';

const count = Number(process.argv[2]);
const members = [1];
await using cell = await Cell.create({
  nodes: members,
  withBroker: false,
  config: {archive: {partialAfterMs: 2000, evictAfterMs: 3000}, unloadAfterMs: 3000},
});

/** After collection: JavaScript's heap, and what lies outside it. */
function memory(): number {
  globalThis.gc!();
  globalThis.gc!();
  const {heapUsed, external} = process.memoryUsage();
  return heapUsed + external;
}

async function loaded(): Promise<number> {
  const text = await (await fetch(`http://127.0.0.1:${cell.ports.get(1)!.httpPort}/metrics`)).text();
  return [...text.matchAll(/^pagoda_safekeeper_timeline_term\{/gm)].length;
}

interface Written {
  readonly id: string;
  readonly endLsn: Lsn;
}

/** Makes timelines that are all in memory; then lets them rest. */
async function cycle(length: number): Promise<{written: Written[]; inMemory: number; loadedThen: number}> {
  const written: Written[] = [];
  for (let i = 0; i < length; i++) {
    const id = cell.newTimeline();
    await cell.createTimeline(members);
    const writer = await Writer.elect(cell, members);
    await writer.write([300, 500 + (i % 7)]);
    writer.close();
    written.push({id, endLsn: writer.lsn});
  }
  const inMemory = memory();
  const loadedThen = await loaded();
  for (const {id, endLsn} of written) {
    cell.timelineId = id;
    await cell.pageserverHas(1, endLsn);
  }
  await until(async () => (await loaded()) === 0, 400_000);
  return {written, inMemory, loadedThen};
}

// Whatever is made once is made now.
await cycle(40);
const before = memory();
const {written, inMemory, loadedThen} = await cycle(count);
const atRest = memory();
let walFiles = 0;
for (const {id} of written) {
  cell.timelineId = id;
  walFiles += cell.walFiles(1).length;
}
// One of them wakes as it was.
const one = written[count >> 1]!;
cell.timelineId = one.id;
const woken = await cell.lsn(1, 'flushLsn');
const bytes = await cell.read(1, startLsn, woken);
console.log(
  JSON.stringify({
    count,
    loadedThen,
    bytesEachInMemory: Math.round((inMemory - before) / Math.max(1, loadedThen)),
    bytesEachAtRest: Math.round((atRest - before) / count),
    walFiles,
    wokenRight: woken === one.endLsn && bytes.length === woken - startLsn,
  }),
);
