import {test} from 'node:test';
import assert from 'node:assert/strict';
import {SeededRandom} from '#runtime/random.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {encodePackedPages, packedCodec, unpackPages} from '#wire/packed-pages.ts';
import {alwaysValid} from '../generation-validator.ts';
import {importLsn, testContext, testIds} from '../timeline/model.testing.ts';
import {Tenant} from '../timeline/tenant.ts';
import {RunMemory} from './layer-reader.ts';

const rel = {spcNode: 1663, dbNode: 100, relNode: 1000, fork: 0} as const;

test('answers that share blocks keep them while the memory of others is used again', async (context) => {
  const tenant = await Tenant.attach(testContext(new MemoryObjectStore()), alwaysValid, testIds.tenantId, 1);
  const timeline = await tenant.createEmpty(testIds.firstTimeline, 15);
  context.after(() => timeline.stop());
  const random = new SeededRandom(3);
  // Half of a page compresses: it travels packed.
  const pages = Array.from({length: 256}, () => Buffer.concat([random.bytes(2000), Buffer.alloc(6192, 7)]));
  await timeline.import(async (writer) => {
    writer.createRelation(rel.spcNode, rel.dbNode, rel.relNode, rel.fork, importLsn);
    writer.setRelationSize(rel.spcNode, rel.dbNode, rel.relNode, rel.fork, pages.length, importLsn);
    for (const [block, page] of pages.entries())
      writer.relationPageImage(rel.spcNode, rel.dbNode, rel.relNode, rel.fork, block, importLsn, page);
    return {lsn: importLsn, systemId: '7'};
  });
  await timeline.checkpoint();
  while (await timeline.compactionStep());

  const free: RunMemory[] = [];
  let shared = 0;
  let reused = 0;
  const ask = async (block: number): Promise<void> => {
    const memory = free.pop() ?? new RunMemory();
    const into = Buffer.alloc(64 * 8192);
    const segments = await timeline.getPackedRelPagesNow(rel, block, 64, importLsn, into, memory);
    assert.ok(segments.some(({codec}) => codec === packedCodec.lz4));
    // While the answer is on its way others are made.
    for (let turn = random.uint32() % 8; turn > 0; turn--) await Promise.resolve();
    const answer = unpackPages(Buffer.concat(encodePackedPages(segments)), 64);
    assert.ok(answer.equals(Buffer.concat(pages.slice(block, block + 64))), `pages from ${block} on`);
    if (memory.isShared) shared++;
    else {
      memory.reset();
      free.push(memory);
      reused++;
    }
  };
  for (let round = 0; round < 60; round++)
    await Promise.all(Array.from({length: 6}, () => ask((random.uint32() % 4) * 64)));
  assert.ok(shared > 0 && reused > 0, `${shared} answers shared blocks, the memory of ${reused} was used again`);
});
