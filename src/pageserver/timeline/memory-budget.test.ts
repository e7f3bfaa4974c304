import {test} from 'node:test';
import assert from 'node:assert/strict';
import {lsn} from '#postgres/lsn.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {alwaysValid} from '../generation-validator.ts';
import {MemoryBudget} from './memory-budget.ts';
import {createRoot, testContext, testIds} from './model.testing.ts';
import {Tenant} from './tenant.ts';

/** Takes a while for each object, so that frozen layers pile up. */
class SlowStore extends MemoryObjectStore {
  override async put(...args: Parameters<MemoryObjectStore['put']>): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, 2));
    return super.put(...args);
  }
}

test('open layers of all branches together stay within the budget: the largest goes first, and writers wait', async (context) => {
  const bytesMax = 2 << 20;
  const store = new SlowStore();
  const memory = new MemoryBudget(bytesMax);
  const tenant = await Tenant.attach(
    {...testContext(store, {layerBytes: 64 << 20, frozenLayersMax: 4}, 1 << 20), memory},
    alwaysValid,
    testIds.tenantId,
    1,
  );
  const root = await createRoot(tenant);
  context.after(() => {
    for (const timeline of tenant.timelines()) timeline.stop();
  });
  const branches = [];
  for (let i = 0; i < 30; i++)
    branches.push(await tenant.createBranch(String(i).padStart(32, '0'), root.timelineId, undefined));
  let at = 0x2000;
  let most = 0;
  let waits = 0;
  await Promise.all(
    branches.map(async (branch, n) => {
      for (let i = 0; i < 60; i++) {
        const writer = await branch.writer();
        const end = lsn((at += 8));
        writer.slruPageImage(0, i, end, Buffer.alloc(8192, n + i));
        writer.endRecord(end);
        most = Math.max(most, memory.bytes);
        if (!branch.hasRoom) {
          waits++;
          await branch.waitForRoom();
        } else if (i % 8 === 0) await new Promise((resolve) => setTimeout(resolve, 0));
      }
    }),
  );
  assert.ok(waits > 0, 'writers have waited');
  // The chunk in which a layer grows comes on top, for each writer that was let in at once.
  assert.ok(most < bytesMax + branches.length * (64 << 10), `${most} bytes, ${bytesMax} allowed`);
  for (const [n, branch] of branches.entries()) {
    const pages = await branch.getSlruPages(0, [0, 59], branch.lastRecordLsn);
    assert.deepEqual([pages[0]![0], pages[1]![0]], [n, n + 59]);
    await branch.checkpoint();
    branch.onRelease = () => true;
    assert.ok(branch.releaseIdle(), 'a branch that rests lets go of its memory');
    assert.equal((await branch.getSlruPages(0, [7], branch.lastRecordLsn))[0]![0], n + 7);
  }
  assert.equal(memory.bytes, 0);
});
