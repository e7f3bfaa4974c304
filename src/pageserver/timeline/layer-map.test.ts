import {test} from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import {lsn} from '#postgres/lsn.ts';
import type {LayerReader} from '../layers/layer-reader.ts';
import type {LayerDescription} from './index-object.ts';
import {encodeKey, readKey, wholeKeySpace} from './key.ts';
import {LayerMap, LayerWalk} from './layer-map.ts';

const prefix = {kind: 0x10, a: 1663, b: 5, c: 16384, d: 0};
const keyOf = (block: number): string => encodeKey({prefix, e: block}).toString('hex');

interface Rectangle {
  readonly first: number;
  readonly last: number;
  readonly start: number;
  readonly end: number;
  readonly complete: boolean;
  readonly continues: boolean;
}

let names = 0;
function reader(r: Rectangle): LayerReader {
  const description: LayerDescription = {
    name: `layer-${++names}`,
    kind: r.complete ? 'image' : 'delta',
    generation: 1,
    firstKey: keyOf(r.first),
    lastKey: keyOf(r.last),
    startLsn: lsn(r.start),
    endLsn: lsn(r.end),
    complete: r.complete,
    size: 1,
    checksum: 0,
    rootOffset: 0,
    versions: 1,
    level: 1,
    run: names,
    continues: r.continues,
  };
  return {description} as LayerReader;
}

interface Visit {
  readonly name: string;
  readonly below: number;
  readonly floor: number;
}

function visits(map: LayerMap, block: number, below: number): Visit[] {
  const walk = new LayerWalk();
  const found: Visit[] = [];
  walk.start(map, prefix, block, below);
  for (let layer = walk.next(); layer !== undefined; layer = walk.next())
    found.push({name: layer.description.name, below: walk.belowLsn, floor: walk.isImage ? 0 : walk.floorLsn});
  return found;
}

/** The same by looking at every layer. */
function naive(layers: readonly LayerReader[], block: number, below: number): Visit[] {
  const key = keyOf(block);
  const covering = layers.map((l) => l.description).filter((d) => d.firstKey <= key && d.lastKey >= key);
  const image = covering
    .filter((d) => d.complete && d.startLsn < below)
    .sort((x, y) => y.startLsn - x.startLsn)
    .at(0);
  const floor = image === undefined ? 0 : image.startLsn + 1;
  const deltas = covering
    .filter((d) => !d.complete)
    .sort((x, y) => y.endLsn - x.endLsn || y.startLsn - x.startLsn || y.run - x.run);
  const found: Visit[] = [];
  let next = below;
  for (const d of deltas) {
    if (d.startLsn >= next || d.endLsn <= floor) continue;
    found.push({name: d.name, below: next, floor});
    next = Math.min(next, d.continues ? d.startLsn + 1 : d.startLsn);
  }
  if (image !== undefined) found.push({name: image.name, below: image.endLsn, floor: 0});
  return found;
}

/** A band of LSNs cut into stretches of keys, or an image of a stretch. */
const arbitraryBand = fc.record({
  cuts: fc.uniqueArray(fc.integer({min: 1, max: 99}), {maxLength: 8}),
  length: fc.integer({min: 1, max: 9}),
  image: fc.boolean(),
  continues: fc.boolean(),
});

test('the walk visits what looking at every layer finds, in that order, while layers come, go and are narrowed', () => {
  fc.assert(
    fc.property(
      fc.array(arbitraryBand, {minLength: 1, maxLength: 30}),
      fc.array(fc.nat(), {maxLength: 60}),
      fc.array(fc.tuple(fc.integer({min: 0, max: 100}), fc.integer({min: 0, max: 300})), {
        minLength: 20,
        maxLength: 20,
      }),
      (bands, changes, reads) => {
        const map = new LayerMap();
        let layers: LayerReader[] = [];
        let at = 10;
        for (const {cuts, length, image, continues} of bands) {
          const bounds = [0, ...cuts.sort((x, y) => x - y), 101];
          for (let i = 0; i + 1 < bounds.length; i++) {
            if (image && i % 2 === 1) continue;
            const r = {first: bounds[i]!, last: bounds[i + 1]! - 1, continues};
            layers.push(reader({...r, start: at, end: image ? at + 1 : at + length, complete: image}));
            map.add(layers.at(-1)!);
          }
          at += length;
        }
        for (const pick of changes) {
          const chosen = layers[pick % Math.max(1, layers.length)];
          if (chosen === undefined) break;
          const {description} = chosen;
          const middle = readKey(Buffer.from(description.firstKey, 'hex'), 0).e + (pick % 7);
          if (pick % 3 === 0 && description.lastKey >= keyOf(middle)) {
            map.narrow({...description, moving: {from: keyOf(middle), run: description.run}});
          } else {
            map.remove(description.name);
            layers = layers.filter((l) => l !== chosen);
          }
        }
        const narrowed = layers.map(
          (l) =>
            ({
              description: {...l.description, firstKey: l.description.moving?.from ?? l.description.firstKey},
            }) as LayerReader,
        );
        for (const [block, below] of reads) assert.deepEqual(visits(map, block, below), naive(narrowed, block, below));
        assert.equal(map.count, layers.length);
        // Of a range: what any single key of it would have to look into is in the plan.
        const below = reads[0]![1];
        const plan = map.plan(wholeKeySpace, below);
        const planned = new Set([
          ...plan.deltas.map((d) => d.description.name),
          ...plan.segments.flatMap((s) => (s.image === undefined ? [] : [s.image.description.name])),
        ]);
        for (const [block] of reads)
          for (const {name} of naive(narrowed, block, below)) assert.ok(planned.has(name), `${name} is in the plan`);
      },
    ),
    {numRuns: 300},
  );
});

test('a look-up among 10,000 layers makes about a hundred comparisons, and adding one does not build everything anew', () => {
  const map = new LayerMap();
  const cost = (): number => {
    map.comparisons = 0;
    const reads = 1000;
    let visited = 0;
    for (let i = 0; i < reads; i++) visited += visits(map, (i * 7919) % 10_000, 1 + ((i * 104_729) % 1200)).length;
    return map.comparisons / (reads + visited);
  };
  // Bands of 100 stretches each, 200 keys wide or so, whose cuts do not agree; an image of every tenth.
  const fill = (bands: number, from: number): void => {
    for (let band = from; band < bands; band++) {
      const shift = (band * 37) % 100;
      for (let i = 0; i < 100; i++) {
        const first = i === 0 ? 0 : i * 100 + shift;
        const last = i === 99 ? 9999 : (i + 1) * 100 + shift - 1;
        const start = band * 12;
        map.add(
          reader({
            first,
            last,
            start,
            end: band % 10 === 9 ? start + 1 : start + 12,
            complete: band % 10 === 9,
            continues: false,
          }),
        );
      }
    }
  };
  fill(10, 0);
  const few = cost();
  const loading = performance.now();
  map.batch(() => fill(100, 10));
  const loaded = performance.now() - loading;
  assert.equal(map.count, 10_000);
  const many = cost();
  assert.ok(many < 150, `${many} comparisons per layer looked into, among 10,000`);
  assert.ok(many < few * 3, `ten times the layers: ${few} → ${many} comparisons`);
  const started = performance.now();
  const added = 200;
  for (let i = 0; i < added; i++)
    map.add(reader({first: 0, last: 9999, start: 1200 + i, end: 1201 + i, complete: false, continues: false}));
  const perAdd = (performance.now() - started) / added;
  assert.ok(perAdd < 20, `${perAdd} ms to add a layer`);
  console.log(
    `# ${few.toFixed(1)} comparisons per layer visited of 1,000, ${many.toFixed(1)} of 10,000; ${loaded.toFixed(0)} ms to load them, ${perAdd.toFixed(2)} ms to add one`,
  );
});
