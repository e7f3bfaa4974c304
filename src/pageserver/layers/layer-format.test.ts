import {test} from 'node:test';
import assert from 'node:assert/strict';
import {readFileSync} from 'node:fs';
import {lsn} from '#postgres/lsn.ts';
import {layerName} from '#pageserver/timeline/index-object.ts';
import {type Key, relPagePrefix, relSizeKey} from '#pageserver/timeline/key.ts';
import {encodeSize} from '#pageserver/timeline/sizes.ts';
import {flagStartsHistory, valueKind} from '#pageserver/timeline/value.ts';
import {
  LayerCorruption,
  checkHeader,
  decodeFooter,
  layerFooterBytes,
  layerHeaderBytes,
  objectIdentity,
} from './layer-format.ts';
import {LayerWriter} from './layer-writer.ts';

const tenantId = '0123456789abcdef0123456789abcdef';
const timelineId = 'fedcba9876543210fedcba9876543210';

test('the worked example of docs/formats/layer.md is what the writer writes', () => {
  const text = readFileSync(new URL('../../../docs/formats/layer.md', import.meta.url), 'utf8');
  const hex = [...text.matchAll(/^[0-9a-f]{4}((?: [0-9a-f]{2})+)$/gm)].map((m) => m[1]!.replaceAll(' ', '')).join('');
  const documented = Buffer.from(hex, 'hex');

  const name = layerName('delta', lsn(0x1500028), lsn(0x1500101), 0x5eed, 3);
  assert.ok(text.includes(name));
  const identity = objectIdentity(`${tenantId}/${timelineId}/${name}`, 3);
  const writer = new LayerWriter(identity, {
    tenantId,
    timelineId,
    flags: 0,
    startLsn: lsn(0x1500028),
    endLsn: lsn(0x1500101),
  });
  const rel = {spcNode: 1663, dbNode: 5, relNode: 16384, fork: 0} as const;
  const put = (key: Key, at: number, kind: number, flags: number, payload: Buffer): void =>
    writer.add(key.prefix, key.e, lsn(at), kind, flags, 0, payload, 0, payload.length);
  const page: Key = {prefix: relPagePrefix(rel), e: 7};
  put(page, 0x1500060, valueKind.zero, flagStartsHistory, Buffer.alloc(0));
  put(page, 0x1500100, valueKind.patch, 0, Buffer.from([2, 0x18, 0, 0xfc, 1]));
  const size = encodeSize({blocks: 8, floorLsn: lsn(0x1500028), truncations: []});
  put(relSizeKey(rel), 0x1500028, valueKind.image, flagStartsHistory, size);
  const built = writer.finish();
  assert.deepEqual(Buffer.concat(built.pieces), documented);
  assert.equal(built.checksum, 0x4e40c3bb);
  assert.equal(built.rootOffset, 252);

  checkHeader(identity, documented.subarray(0, layerHeaderBytes));
  const footerAt = documented.length - layerFooterBytes;
  assert.deepEqual(decodeFooter(identity, footerAt, documented.subarray(footerAt)), {
    flags: 0,
    rootOffset: 252,
    rootStoredBytes: 58,
    dataBlocks: 1,
    indexBlocks: 1,
    keys: 2,
    versions: 3,
  });
  // The same bytes under another name or generation are not accepted.
  for (const other of [objectIdentity(`${tenantId}/${timelineId}/other`, 3), objectIdentity(identity.id, 4)])
    assert.throws(() => checkHeader(other, documented.subarray(0, layerHeaderBytes)), LayerCorruption);
});
