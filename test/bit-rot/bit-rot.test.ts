import assert from 'node:assert/strict';
import {test} from 'node:test';
import {formats} from './formats.ts';
import {runBitRot} from './run.ts';

// `npm run bit-rot` does 10,000 of each.
for (const format of Object.keys(formats))
  test(`${format}: every damage is found before a byte is served`, async () => {
    const [report] = await runBitRot({cases: 300, seed: 20, only: format});
    assert.deepEqual(report!.failures, []);
    assert.equal(report!.refused + report!.repaired, 300);
    if (format === 'local-cache') assert.equal(report!.repaired, 300);
  });
