import {strict as assert} from 'node:assert';
import {execFileSync} from 'node:child_process';
import {mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {SeededRandom} from '#runtime/random.ts';
import {unifiedDiff} from './line-diff.ts';

test('as diff -u prints it', () => {
  assert.equal(unifiedDiff('a\nb\n', 'a\nb\n', 'x', 'y'), '');
  assert.equal(unifiedDiff('a\nb\nc\n', 'a\nB\nc\n', 'x', 'y'), '--- x\n+++ y\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n');
  assert.equal(unifiedDiff('', 'a\n', 'x', 'y'), '--- x\n+++ y\n@@ -0,0 +1,1 @@\n+a\n');
});

test('patch makes the new text of the old one', () => {
  const random = new SeededRandom(5);
  const dir = mkdtempSync(join(tmpdir(), 'diff-'));
  try {
    for (let round = 0; round < 30; round++) {
      const lines = Array.from({length: random.uint32() % 60}, () => `line ${random.uint32() % 12}`);
      const changed = lines.flatMap((l) => {
        const dice = random.uint32() % 10;
        return dice === 0 ? [] : dice === 1 ? [l, 'new'] : dice === 2 ? ['other'] : [l];
      });
      const [before, after] = [lines, changed].map((l) => l.map((x) => `${x}\n`).join(''));
      writeFileSync(join(dir, 'f'), before!);
      const diff = unifiedDiff(before!, after!, 'f', 'f');
      if (diff === '') {
        assert.equal(before, after);
        continue;
      }
      writeFileSync(join(dir, 'd'), diff);
      execFileSync('git', ['apply', '--unidiff-zero', '-p0', '--recount', 'd'], {cwd: dir, stdio: 'pipe'});
      assert.equal(execFileSync('cat', ['f'], {cwd: dir}).toString(), after);
    }
  } finally {
    rmSync(dir, {recursive: true});
  }
});
