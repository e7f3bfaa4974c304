import assert from 'node:assert/strict';
import {spawnSync} from 'node:child_process';
import {existsSync, mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {failpoint} from '#runtime/failpoint.ts';

const script = `
  import {failpoint} from '#runtime/failpoint.ts';
  for (let i = 0; i < 3; i++) {
    try { failpoint('test.step.before'); failpoint('test.step.after'); console.log('step', i); }
    catch (e) { console.log(e.code, i); }
  }`;

function child(env: Record<string, string>): {stdout: string; signal: string | null; status: number | null} {
  const r = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    cwd: join(import.meta.dirname, '../..'),
    env: {...process.env, ...env},
    encoding: 'utf8',
  });
  return {stdout: r.stdout, signal: r.signal, status: r.status};
}

test('nothing happens when nothing is armed', () => {
  failpoint('test.step.before');
  assert.equal(child({}).stdout, 'step 0\nstep 1\nstep 2\n');
});

test('the nth call kills, exits, fails or pauses', () => {
  const killed = child({PAGODA_FAILPOINT: 'test.step.after:2'});
  assert.equal(killed.stdout, 'step 0\n');
  assert.equal(killed.signal, 'SIGKILL');
  assert.equal(child({PAGODA_FAILPOINT: 'test.step.before:1:exit'}).status, 86);
  assert.equal(child({PAGODA_FAILPOINT: 'test.step.before:2:error'}).stdout, 'step 0\nEIO 1\nstep 2\n');
  assert.equal(child({PAGODA_FAILPOINT: 'test.step.before:2:pause=10'}).stdout, 'step 0\nstep 1\nstep 2\n');
  assert.notEqual(child({PAGODA_FAILPOINT: 'test.step.before:x'}).status, 0);
});

test('a file arms once, and only the process it names', () => {
  const dir = mkdtempSync(join(tmpdir(), 'failpoint-'));
  const file = join(dir, 'armed');
  try {
    writeFileSync(file, 'test.step.before:2:kill:1');
    assert.equal(child({PAGODA_FAILPOINT_FILE: file}).stdout, 'step 0\nstep 1\nstep 2\n');
    writeFileSync(file, 'test.step.before:2');
    assert.equal(child({PAGODA_FAILPOINT_FILE: file}).signal, 'SIGKILL');
    assert.ok(existsSync(`${file}.fired`));
    assert.equal(child({PAGODA_FAILPOINT_FILE: file}).stdout, 'step 0\nstep 1\nstep 2\n');
  } finally {
    rmSync(dir, {recursive: true});
  }
});
