import assert from 'node:assert/strict';
import {test} from 'node:test';
import fc from 'fast-check';
import {
  type PagePatchOperation,
  PagePatchBuilder,
  PagePatchError,
  applyPagePatch,
  decodePagePatch,
  fsmSlotsPerPage,
} from '#pageserver/ingest/page-patch.ts';

const operation: fc.Arbitrary<PagePatchOperation> = fc.oneof(
  fc.tuple(fc.nat(8191), fc.uint8Array({maxLength: 60})).map(([offset, bytes]) => ({
    kind: 'set' as const,
    offset: Math.min(offset, 8192 - bytes.length),
    bytes: Buffer.from(bytes),
  })),
  fc
    .tuple(fc.nat(8191), fc.nat(255), fc.nat(255))
    .map(([offset, and, or]) => ({kind: 'mask' as const, offset, and, or})),
  fc
    .record({
      kind: fc.constant('fill' as const),
      offset: fc.nat(8191),
      length: fc.integer({min: 1, max: 8192}),
      value: fc.nat(255),
    })
    .map((o) => ({...o, length: Math.min(o.length, 8192 - o.offset)})),
);

function build(operations: readonly PagePatchOperation[]): Buffer {
  const builder = new PagePatchBuilder();
  for (const o of operations) {
    if (o.kind === 'set') builder.set(o.offset, o.bytes);
    else if (o.kind === 'mask') builder.mask(o.offset, o.and, o.or);
    else if (o.kind === 'fill') builder.fill(o.offset, o.length, o.value);
    else builder.fsmTruncate(o.slot);
  }
  const patch = builder.take();
  assert.ok(builder.isEmpty);
  return patch;
}

test('operations survive encoding, and applying does what they say, in order', () => {
  fc.assert(
    fc.property(fc.array(operation, {maxLength: 30}), fc.nat(255), (operations, background) => {
      const patch = build(operations);
      assert.deepEqual(decodePagePatch(patch), operations);
      const page = Buffer.alloc(8192, background);
      const expected = Buffer.from(page);
      for (const o of operations) {
        if (o.kind === 'set') o.bytes.copy(expected, o.offset);
        else if (o.kind === 'mask') expected[o.offset] = (expected[o.offset]! & o.and) | o.or;
        else if (o.kind === 'fill') expected.fill(o.value, o.offset, o.offset + o.length);
      }
      applyPagePatch(page, patch);
      assert.ok(page.equals(expected));
    }),
    {numRuns: 300},
  );
});

test('hostile bytes never write outside the page: an error or a changed page, nothing else', () => {
  fc.assert(
    fc.property(fc.uint8Array({maxLength: 40}), (bytes) => {
      const page = Buffer.alloc(8192);
      try {
        applyPagePatch(page, Buffer.from(bytes));
      } catch (error) {
        assert.ok(error instanceof PagePatchError);
      }
    }),
    {numRuns: 2000},
  );
});

test('a truncated free-space map forgets the tail and agrees with itself', () => {
  const nodes = 28;
  const inner = 4095;
  const page = Buffer.alloc(8192);
  for (let slot = 0; slot < fsmSlotsPerPage; slot++) page[nodes + inner + slot] = 1 + (slot % 200);
  applyPagePatch(page, build([{kind: 'fsm-truncate', slot: 150}]));
  for (let slot = 0; slot < fsmSlotsPerPage; slot++)
    assert.equal(page[nodes + inner + slot], slot < 150 ? 1 + slot : 0);
  const value = (node: number): number => (nodes + node < 8192 ? page[nodes + node]! : 0);
  for (let node = 0; node < inner; node++)
    assert.equal(value(node), Math.max(value(2 * node + 1), value(2 * node + 2)));
  assert.equal(value(0), 150);
});
