import assert from 'node:assert/strict';
import {mkdirSync, mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import {after, test} from 'node:test';
import {systemDisk} from '#runtime/disk.ts';
import {SeededRandom} from '#runtime/random.ts';
import {Layout} from '#cli/layout.ts';
import {chooseObjectStore, parseObjectStore} from '#cli/object-store-choice.ts';

const dir = mkdtempSync(join(tmpdir(), 'pagoda-choice-'));
after(() => rmSync(dir, {recursive: true, force: true}));

const random = new SeededRandom(1);

test('forms of PAGODA_OBJECT_STORE', () => {
  assert.deepEqual(parseObjectStore('folder:/a/b/'), {kind: 'folder', root: '/a/b'});
  assert.deepEqual(parseObjectStore('s3://bucket'), {kind: 's3', bucket: 'bucket'});
  assert.deepEqual(
    parseObjectStore('s3://my.bucket-1/some/where/?endpoint=http://127.0.0.1:9000/&region=eu-1&credentials=/k'),
    {
      kind: 's3',
      bucket: 'my.bucket-1',
      prefix: 'some/where/',
      endpoint: 'http://127.0.0.1:9000',
      region: 'eu-1',
      credentialsFile: '/k',
    },
  );
  for (const bad of [
    'folder:x',
    's3://B',
    's3://',
    'x',
    's3://bucket?secret=1',
    's3://bucket/../x',
    's3://bucket?endpoint=host',
  ])
    assert.throws(() => parseObjectStore(bad), /Forms: /, bad);
});

test('the choice stays with the data directory', () => {
  const layout = new Layout(join(dir, 'one'));
  mkdirSync(layout.data);
  const first = chooseObjectStore(layout, 's3://bucket/a?region=x', systemDisk, random);
  assert.match(first.installationId!, /^[0-9a-f]{32}$/);
  assert.deepEqual(chooseObjectStore(layout, undefined, systemDisk, random), first);
  const moved = chooseObjectStore(layout, 's3://bucket/a?region=y', systemDisk, random);
  assert.deepEqual(moved, {...first, region: 'y'});
  assert.deepEqual(chooseObjectStore(layout, '', systemDisk, random), moved);
  assert.throws(
    () => chooseObjectStore(layout, 's3://bucket/b', systemDisk, random),
    /keeps its objects in s3:\/\/bucket\/a/,
  );
});

test('data from before the choice was written down stays in its folder', () => {
  const layout = new Layout(join(dir, 'old'));
  mkdirSync(dirname(layout.database), {recursive: true});
  writeFileSync(layout.database, '');
  assert.throws(() => chooseObjectStore(layout, 's3://bucket', systemDisk, random), /cannot change that/);
  assert.equal(chooseObjectStore(layout, undefined, systemDisk, random).kind, 'folder');
});
