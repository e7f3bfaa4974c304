/** A short run of the fuzzer (`npm run fuzz`), and that it would see what it looks for. */
import assert from 'node:assert/strict';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {makeCase, runCase} from './cases.ts';
import {loadCorpus} from './corpus.ts';
import {fuzz} from './run.ts';

const corpus = await loadCorpus();

test('20,000 hostile records, pages and stretches of WAL: an error of the contract each time, in bounded time and memory', async () => {
  const failuresDir = mkdtempSync(join(tmpdir(), 'pagoda-fuzz-failures-'));
  const result = await fuzz(corpus, {cases: 20_000, seed: 15, failuresDir, onProgress: (text) => console.log(text)});
  assert.equal(result.escaped, 0, `failing cases are in ${failuresDir}`);
  assert.equal(result.hangs, 0, `failing cases are in ${failuresDir}`);
  assert.ok(result.slowest.ms < 100, `case ${result.slowest.number} takes ${result.slowest.ms} ms`);
  assert.ok(result.memory.heapEnd - result.memory.heapStart < 16 * 1024 * 1024);
  // Hostile enough to be refused, and close enough to real records to get through.
  for (const kind of ['redo done', 'redo refused', 'decode done', 'decode refused', 'reader refused', 'interpret done'])
    assert.ok((result.outcomes[kind] ?? 0) > 50, `${kind}: ${result.outcomes[kind] ?? 0}`);
  rmSync(failuresDir, {recursive: true, force: true});
});

test('the corpus holds every resource manager with pages', () => {
  const managers = new Set(corpus.names.map((name) => name.split('/')[0]));
  for (const name of ['XLOG', 'Heap', 'Heap2', 'Btree', 'Hash', 'Gin', 'Gist', 'SPGist', 'BRIN', 'Sequence', 'Generic'])
    assert.ok(managers.has(name), name);
  assert.ok(corpus.names.length >= 70, `${corpus.names.length} record types`);
});

test('a case is decided by seed and number', () => {
  for (let number = 0; number < 50; number++) {
    const [one, two] = [makeCase(corpus, 7, number), makeCase(corpus, 7, number)];
    assert.deepEqual(one, two);
    assert.deepEqual(runCase(one), runCase(two));
  }
});
