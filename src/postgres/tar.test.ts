import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import fc from 'fast-check';
import {type TarEntry, readTar, writeTar} from '#postgres/tar.ts';

async function* chunked(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  await Promise.resolve();
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function archive(entries: TarEntry[]): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of writeTar(entries)) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function members(
  bytes: Buffer,
  chunkBytes: number,
  skipEvery = 0,
): Promise<{path: string; kind: string; contents?: Buffer}[]> {
  const found: {path: string; kind: string; contents?: Buffer}[] = [];
  let n = 0;
  for await (const member of readTar(chunked(bytes, chunkBytes))) {
    n++;
    if (skipEvery > 0 && n % skipEvery === 0) found.push({path: member.path, kind: member.kind});
    else found.push({path: member.path, kind: member.kind, contents: await member.bytes(1e6)});
  }
  return found;
}

test('what is written is read back, in chunks of any size, with members passed over', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({name: fc.stringMatching(/^[a-z]{1,90}$/), size: fc.nat(3000), directory: fc.boolean()}), {
        maxLength: 12,
      }),
      fc.integer({min: 1, max: 5000}),
      fc.nat(3),
      async (files, chunkBytes, skipEvery) => {
        const entries = files.map(({name, size, directory}, i): TarEntry =>
          directory
            ? {path: `d${i}/${name}`, kind: 'directory'}
            : {path: `d${i}/${name}`, kind: 'file', contents: Buffer.alloc(size, i + 1)},
        );
        const found = await members(await archive(entries), chunkBytes, skipEvery);
        assert.deepEqual(
          found.map(({path, kind}) => ({path, kind})),
          entries.map(({path, kind}) => ({path, kind})),
        );
        found.forEach((member, i) => {
          if (member.contents !== undefined) assert.deepEqual(member.contents, entries[i]!.contents ?? Buffer.alloc(0));
        });
      },
    ),
    {numRuns: 100},
  );
});

test("the machine's tar reads ours, and we read its: long names, pax headers, links", async () => {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-tar-'));
  try {
    const long = `${'a'.repeat(80)}/${'b'.repeat(80)}`;
    writeFileSync(
      join(dir, 'ours.tar'),
      await archive([
        {path: 'pg_wal', kind: 'directory'},
        {path: long, kind: 'file', contents: Buffer.from('long')},
        {path: 'pg_wal/x', kind: 'file', stream: {size: 5, chunks: [Buffer.from('he'), Buffer.from('llo')]}},
      ]),
    );
    mkdirSync(join(dir, 'out'));
    execFileSync('tar', ['-xf', join(dir, 'ours.tar'), '-C', join(dir, 'out')]);
    assert.equal(readFileSync(join(dir, 'out', long), 'utf8'), 'long');
    assert.equal(readFileSync(join(dir, 'out/pg_wal/x'), 'utf8'), 'hello');
    const veryLong = 'c'.repeat(200);
    writeFileSync(join(dir, 'out', veryLong), 'very long');
    execFileSync('ln', ['-s', 'x', join(dir, 'out/pg_wal/link')]);
    for (const format of ['gnu', 'pax', 'ustar']) {
      const names = format === 'ustar' ? ['./pg_wal'] : ['.'];
      const bytes = execFileSync('tar', [`--format=${format}`, '-C', join(dir, 'out'), '-cf', '-', ...names]);
      const found = new Map((await members(bytes, 1000)).map((m) => [m.path, m]));
      assert.equal(found.get('pg_wal/x')!.contents!.toString(), 'hello');
      assert.equal(found.get('pg_wal/link')!.kind, 'symlink');
      if (format !== 'ustar') assert.equal(found.get(veryLong)!.contents!.toString(), 'very long');
    }
  } finally {
    rmSync(dir, {recursive: true});
  }
});

test('damaged and hostile archives are refused', async () => {
  const good = await archive([{path: 'a', kind: 'file', contents: Buffer.from('x'.repeat(1000))}]);
  await assert.rejects(members(good.subarray(0, 700), 100), /ends inside a member/);
  const damaged = Buffer.from(good);
  damaged[3]! ^= 1;
  await assert.rejects(members(damaged, 100), /checksum/);
  await assert.rejects(
    async () => members(await archive([{path: '../x', kind: 'directory'}]), 100),
    /leaves the directory/,
  );
  await assert.rejects(
    async () => members(await archive([{path: '/x', kind: 'directory'}]), 100),
    /leaves the directory/,
  );
  await assert.rejects(archive([{path: 'a'.repeat(300), kind: 'directory'}]), /too long/);
  await assert.rejects(
    archive([{path: 'a', kind: 'file', stream: {size: 3, chunks: [Buffer.from('ab')]}}]),
    /announced 3/,
  );
});
