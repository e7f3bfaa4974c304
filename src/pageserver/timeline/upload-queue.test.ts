import {test} from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import type {LayerDescription} from './index-object.ts';
import {type UploadInput, type UploadOutput, UploadQueue} from './upload-queue.ts';

const indexObject = (generation: number, sequence: number): string => `index-${generation}-${sequence}`;

const layerName = (generation: number, id: number): string => `layer-${generation}-${id}`;

function describe(generation: number, id: number): LayerDescription {
  return {
    name: layerName(generation, id),
    kind: 'delta',
    generation,
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
  readonly indexes = new Map<string, {layers: readonly LayerDescription[]; consistentLsn: Lsn}>();
  latestGeneration = 1;
  published = lsn(0);
  /** With whose they are: an attachment that was replaced goes on as long as it lives. */
  readonly waiting: {queue: UploadQueue; output: UploadOutput}[] = [];

  take(queue: UploadQueue, outputs: readonly UploadOutput[]): void {
    for (const output of outputs) {
      if (output.kind === 'publish') {
        assert.ok(output.remoteConsistentLsn >= this.published, 'published LSNs never fall');
        this.published = output.remoteConsistentLsn;
      } else if (output.kind === 'delete') for (const key of output.objects) this.objects.delete(key);
      else if (output.kind !== 'stale') this.waiting.push({queue, output});
    }
    this.check();
  }

  /** What another pageserver would load. */
  newest(): [number, number] | undefined {
    let newest: [number, number] | undefined;
    for (const key of this.objects) {
      const match = /^index-(\d+)-(\d+)$/.exec(key);
      if (!match) continue;
      const at: [number, number] = [Number(match[1]), Number(match[2])];
      if (newest === undefined || at[0] > newest[0] || (at[0] === newest[0] && at[1] > newest[1])) newest = at;
    }
    return newest;
  }

  /** The newest index names only objects that exist, and covers what was published. */
  check(): void {
    const newest = this.newest();
    if (newest === undefined) {
      assert.equal(this.published, 0);
      return;
    }
    const index = this.indexes.get(indexObject(...newest))!;
    for (const {name} of index.layers) assert.ok(this.objects.has(name), `${name} is listed and exists`);
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
        let queue = new UploadQueue({generation: 1, sequence: 0, layers: [], consistentLsn: lsn(0)}, 1, indexObject);
        const generations = new Map([[queue, generation]]);
        let frozen = 0;
        const step = (to: UploadQueue, input: UploadInput): void => world.take(to, to.step(input));
        /** A pageserver loads the newest index, and ingests from there. */
        const attach = (): void => {
          generation = Math.max(generation, world.latestGeneration) + 1;
          world.latestGeneration = generation;
          const newest = world.newest();
          const index = newest && world.indexes.get(indexObject(...newest));
          const [g = generation, sequence = 0] = newest ?? [];
          const consistentLsn = index?.consistentLsn ?? lsn(0);
          frozen = consistentLsn / 8;
          queue = new UploadQueue(
            {generation: g, sequence, layers: index?.layers ?? [], consistentLsn},
            generation,
            indexObject,
          );
          generations.set(queue, generation);
        };
        const answer = (to: UploadQueue, output: UploadOutput, ok: boolean): void => {
          if (output.kind === 'upload-layer') {
            const description = describe(generations.get(to)!, output.id);
            world.objects.add(description.name);
            step(to, {kind: 'layer-uploaded', id: output.id, description});
          } else if (output.kind === 'upload-index') {
            const {generation: g, sequence, layers, consistentLsn} = output;
            const key = indexObject(g, sequence);
            assert.ok(!world.objects.has(key) && !world.indexes.has(key), 'an index object is written once');
            world.indexes.set(key, {layers, consistentLsn});
            world.objects.add(key); // a failed put may have been performed
            world.check();
            step(to, ok ? {kind: 'index-uploaded', sequence} : {kind: 'index-failed', sequence});
          } else if (output.kind === 'validate') {
            if (!ok) step(to, {kind: 'validate-failed', sequence: output.sequence});
            else
              step(to, {
                kind: 'validated',
                sequence: output.sequence,
                valid: output.generation === world.latestGeneration,
              });
          }
        };
        for (const {what, pick} of steps) {
          if (what === 'freeze') step(queue, {kind: 'layer-frozen', id: ++frozen, consistentLsn: lsn(frozen * 8)});
          else if (what === 'change') step(queue, {kind: 'index-changed'});
          else if (what === 'remove') {
            const removed = queue.layers.slice(0, pick % 2);
            step(queue, {
              kind: 'layers-replaced',
              added: [],
              removed,
              narrowed: [],
              objects: removed.map((l) => l.name),
            });
          } else if (what === 'elsewhere') {
            world.latestGeneration = generation + 1; // given out, and not attached yet
          } else if (what === 'new-generation') attach();
          else if (world.waiting.length > 0) {
            const [next] = world.waiting.splice(pick % world.waiting.length, 1);
            answer(next!.queue, next!.output, what === 'answer');
          }
        }
        // In the end, with a good generation, everything frozen is published and only its last index is left.
        attach();
        step(queue, {kind: 'layer-frozen', id: ++frozen, consistentLsn: lsn(frozen * 8)});
        for (let next = world.waiting.shift(); next !== undefined; next = world.waiting.shift())
          answer(next.queue, next.output, true);
        assert.ok(queue.isIdle && queue.isDurable);
        assert.equal(world.published, frozen * 8);
        assert.equal([...world.objects].filter((key) => key.startsWith(`index-${generation}-`)).length, 1);
      },
    ),
    {numRuns: 2000},
  );
});
