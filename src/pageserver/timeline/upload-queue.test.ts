import {test} from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import type {LayerDescription} from './index-object.ts';
import {type UploadInput, type UploadOutput, UploadQueue} from './upload-queue.ts';

const indexObject = (generation: number, sequence: number): string => `index-${generation}-${sequence}`;

function describe(id: number): LayerDescription {
  return {
    name: `layer-${id}`,
    kind: 'delta',
    generation: 1,
    firstKey: '',
    lastKey: '',
    startLsn: lsn(id),
    endLsn: lsn(id + 1),
    complete: false,
    size: 1,
    checksum: 0,
    rootOffset: 0,
    versions: 1,
    level: 0,
    run: id,
    continues: false,
  };
}

/** The object store and the control plane, as the queue's outputs make them. */
class World {
  readonly objects = new Set<string>();
  /** What each index object lists, with its consistent LSN. */
  readonly indexes = new Map<string, {layers: readonly string[]; consistentLsn: Lsn}>();
  latestGeneration = 1;
  published = lsn(0);
  readonly waiting: UploadOutput[] = [];

  take(outputs: readonly UploadOutput[]): void {
    for (const output of outputs) {
      if (output.kind === 'publish') {
        assert.ok(output.remoteConsistentLsn >= this.published, 'published LSNs never fall');
        this.published = output.remoteConsistentLsn;
      } else if (output.kind === 'delete') for (const key of output.objects) this.objects.delete(key);
      else if (output.kind !== 'stale') this.waiting.push(output);
    }
    this.check();
  }

  /** The newest index that another pageserver could load names only objects that exist, and covers what was published. */
  check(): void {
    let newest: [number, number] | undefined;
    for (const key of this.objects) {
      const match = /^index-(\d+)-(\d+)$/.exec(key);
      if (!match) continue;
      const at: [number, number] = [Number(match[1]), Number(match[2])];
      if (newest === undefined || at[0] > newest[0] || (at[0] === newest[0] && at[1] > newest[1])) newest = at;
    }
    if (newest === undefined) {
      assert.equal(this.published, 0);
      return;
    }
    const index = this.indexes.get(indexObject(...newest))!;
    for (const layer of index.layers) assert.ok(this.objects.has(layer), `${layer} is listed and exists`);
    assert.ok(index.consistentLsn >= this.published, 'the newest index covers what was published');
  }
}

test('whatever order answers come in: no dangling index, nothing published early, nothing deleted early', () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          what: fc.constantFrom(
            'freeze',
            'answer',
            'answer',
            'answer',
            'fail',
            'change',
            'remove',
            'new-generation',
            'elsewhere',
          ),
          pick: fc.nat(),
        }),
        {maxLength: 200},
      ),
      (steps) => {
        const world = new World();
        let generation = 1;
        const queue = new UploadQueue({generation: 1, sequence: 0, layers: [], consistentLsn: lsn(0)}, 1, indexObject);
        const step = (input: UploadInput): void => world.take(queue.step(input));
        let frozen = 0;
        const answer = (output: UploadOutput, ok: boolean): void => {
          if (output.kind === 'upload-layer') {
            world.objects.add(`layer-${output.id}`);
            step({kind: 'layer-uploaded', id: output.id, description: describe(output.id)});
          } else if (output.kind === 'upload-index') {
            const {generation: g, sequence, layers, consistentLsn} = output;
            const key = indexObject(g, sequence);
            assert.ok(!world.objects.has(key) && !world.indexes.has(key), 'an index object is written once');
            world.indexes.set(key, {layers: layers.map((l) => l.name), consistentLsn});
            world.objects.add(key); // a failed put may have been performed
            world.check();
            step(ok ? {kind: 'index-uploaded', sequence} : {kind: 'index-failed', sequence});
          } else if (output.kind === 'validate') {
            if (!ok) step({kind: 'validate-failed', sequence: output.sequence});
            else
              step({kind: 'validated', sequence: output.sequence, valid: output.generation === world.latestGeneration});
          }
        };
        for (const {what, pick} of steps) {
          if (what === 'freeze') step({kind: 'layer-frozen', id: ++frozen, consistentLsn: lsn(frozen * 8)});
          else if (what === 'change') step({kind: 'index-changed'});
          else if (what === 'remove') {
            const removed = queue.layers.slice(0, pick % 2);
            step({kind: 'layers-replaced', added: [], removed, narrowed: [], objects: removed.map((l) => l.name)});
          } else if (what === 'elsewhere') {
            world.latestGeneration = generation + 1; // attached to another pageserver
          } else if (what === 'new-generation') {
            generation = Math.max(generation, world.latestGeneration) + 1;
            world.latestGeneration = generation;
            step({kind: 'generation', generation});
          } else if (world.waiting.length > 0) {
            const [output] = world.waiting.splice(pick % world.waiting.length, 1);
            answer(output!, what === 'answer');
          }
        }
        // In the end, with a good generation, everything frozen is published and only the last index is left.
        generation = Math.max(generation, world.latestGeneration) + 1;
        world.latestGeneration = generation;
        step({kind: 'generation', generation});
        for (let output = world.waiting.shift(); output !== undefined; output = world.waiting.shift())
          answer(output, true);
        assert.ok(queue.isIdle && queue.isDurable);
        assert.equal(world.published, frozen * 8);
        assert.equal([...world.objects].filter((key) => key.startsWith('index-')).length, 1);
      },
    ),
    {numRuns: 2000},
  );
});
