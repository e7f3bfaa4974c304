import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import {hotBlocksMax, readHotBlocks} from './hot-blocks.ts';

test('a list is read as autoprewarm writes it, damaged lines are passed over, and a long one is thinned evenly', () => {
  assert.deepEqual(readHotBlocks('<<3>>\n5,1663,1259,0,0\nnonsense\n5,1663,1259,0,1\n5,1663,12'), [
    '5,1663,1259,0,0',
    '5,1663,1259,0,1',
  ]);
  assert.deepEqual(readHotBlocks(''), []);
  const many = Array.from({length: hotBlocksMax * 3}, (_, i) => `5,1663,1259,0,${i}`);
  const kept = readHotBlocks(`<<${many.length}>>\n${many.join('\n')}\n`);
  assert.equal(kept.length, hotBlocksMax);
  assert.equal(kept[1], '5,1663,1259,0,3');
  assert.equal(new Set(kept).size, hotBlocksMax);
});
