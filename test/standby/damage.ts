/** Proof that the comparison sees: the standby's files are changed in every way that matters, and each must be reported. */
import {
  appendFileSync,
  closeSync,
  mkdirSync,
  openSync,
  readSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import {join} from 'node:path';
import {blockSize} from '#postgres/relation.ts';
import {slruDirectory, slruKinds} from '#postgres/slru.ts';

/** Damages the files; answers a pattern per damage of the message that it must lead to. The standby must not go on. */
export function damage(dataDir: string): RegExp[] {
  const expected: RegExp[] = [];
  const base = join(dataDir, 'base');
  const files = readdirSync(base).flatMap((db) =>
    readdirSync(join(base, db))
      .filter((name) => /^\d+(_vm|_init)?$/.test(name) && statSync(join(base, db, name)).size >= 2 * blockSize)
      .map((name) => ({db, name, path: join(base, db, name)})),
  );
  const take = (pattern: RegExp): {db: string; name: string; path: string} => {
    const at = files.findIndex((file) => pattern.test(file.name));
    if (at < 0) throw new Error(`the standby has no file like ${pattern}`);
    return files.splice(at, 1)[0]!;
  };
  const differs = (file: {db: string; name: string}, rest: string): void =>
    void expected.push(new RegExp(`^1663/${file.db}/${file.name}${rest}`));

  const main = take(/^\d+$/);
  flip(main.path, blockSize + 5000);
  differs(main, ' block 1: 1 bytes differ, the first at 5000');
  const longer = take(/^\d+$/);
  appendFileSync(longer.path, Buffer.alloc(blockSize));
  differs(longer, ': \\d+ blocks, the standby has');
  const gone = take(/^\d+$/);
  rmSync(gone.path);
  differs(gone, ' of \\d+ blocks should not exist');
  writeFileSync(join(base, main.db, '999999'), '');
  differs({db: main.db, name: '999999'}, ': no blocks');

  for (const suffix of ['_vm', '_init']) {
    const file = readdirSync(base)
      .flatMap((db) => readdirSync(join(base, db)).map((name) => ({db, name, path: join(base, db, name)})))
      .find(({name, path}) => name.endsWith(suffix) && statSync(path).size > 0);
    if (file === undefined) throw new Error(`the standby has no fork ${suffix}`);
    flip(file.path, 24);
    differs(file, ' block 0: 1 bytes differ, the first at 24');
  }

  for (const kind of slruKinds) {
    const directory = slruDirectory(kind);
    flip(join(dataDir, directory, readdirSync(join(dataDir, directory))[0]!), 8000);
    expected.push(new RegExp(`^${directory} page \\d+: 1 bytes differ, the first at 8000`));
  }
  flip(join(dataDir, 'global/pg_filenode.map'), 100);
  expected.push(/^global\/pg_filenode.map: ours differs/);
  const prepared = readdirSync(join(dataDir, 'pg_twophase'))[0];
  if (prepared === undefined) throw new Error('the standby has no prepared transaction');
  flip(join(dataDir, 'pg_twophase', prepared), 40);
  expected.push(/^pg_twophase\/[0-9A-F]{8}: ours differs/);
  mkdirSync(join(base, '77777'));
  writeFileSync(join(base, '77777', 'PG_VERSION'), '15\n');
  expected.push(/^base\/77777: missing/);
  rmSync(join(base, main.db, 'PG_VERSION'));
  expected.push(new RegExp(`^base/${main.db}: has PG_VERSION: true`));
  mkdirSync(join(dataDir, 'pg_tblspc/88888'));
  expected.push(/^tablespaces: /);
  return expected;
}

function flip(path: string, offset: number): void {
  const file = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, offset);
  byte[0]! ^= 0x40;
  writeSync(file, byte, 0, 1, offset);
  closeSync(file);
}
