/**
 * What a server holds, as pg_dump and pg_dumpall tell, in sections that can be compared one by one. After a restart every
 * section must be as before, but for the contents of unlogged relations: they must be as vanilla PostgreSQL has them after a
 * crash and a restart of its own.
 */
import {execFileSync} from 'node:child_process';
import {join} from 'node:path';
import {postgresBinDir} from '../postgres-cluster.ts';

export interface DumpSource {
  readonly host: string;
  readonly port: number;
  readonly user: string;
}

/** Sections in their order; the key names database, kind, schema, name and owner. */
export interface Dump {
  readonly sections: ReadonlyMap<string, string>;
  /** Keys of the sections that hold contents of unlogged relations. */
  readonly unlogged: ReadonlySet<string>;
}

/** Roles and every database that takes connections. */
export function dumpServer(source: DumpSource): Dump {
  const sections = new Map<string, string>();
  const unlogged = new Set<string>();
  addSections(sections, 'globals', run('pg_dumpall', source, ['--globals-only']));
  const databases = query(source, 'postgres', 'select datname from pg_database where datallowconn order by 1');
  for (const [database] of databases) {
    addSections(sections, database!, run('pg_dump', source, ['-d', database!]));
    const relations = query(
      source,
      database!,
      `select relname, nspname from pg_class c join pg_namespace n on n.oid = relnamespace
       where relpersistence = 'u' and relkind in ('r', 'S')`,
    );
    for (const [name, schema] of relations)
      for (const key of sections.keys())
        if (
          key.startsWith(`${database}: Name: ${name}; Type: TABLE DATA; Schema: ${schema};`) ||
          key.startsWith(`${database}: Name: ${name}; Type: SEQUENCE SET; Schema: ${schema};`)
        )
          unlogged.add(key);
  }
  return {sections, unlogged};
}

export interface DumpComparison {
  readonly compared: number;
  readonly different: readonly string[];
  /** Of `compared`: those whose reference is vanilla PostgreSQL. */
  readonly unlogged: readonly string[];
}

/** `after` must be `before`, with the contents of unlogged relations from `crashed`: vanilla after the same work and a crash. */
export function compareDumps(before: Dump, after: Dump, crashed: Dump): DumpComparison {
  const different: string[] = [];
  const keys = new Set([...before.sections.keys(), ...after.sections.keys()]);
  for (const key of keys) {
    const reference = before.unlogged.has(key) ? crashed : before;
    if (reference.sections.get(key) !== after.sections.get(key)) different.push(key);
  }
  if ([...before.sections.keys()].join() !== [...after.sections.keys()].join() && different.length === 0)
    different.push('the order of sections');
  // A relation that one side has as unlogged and the other has not would be compared with the wrong reference.
  for (const key of new Set([...before.unlogged, ...crashed.unlogged]))
    if (!before.unlogged.has(key) || !crashed.unlogged.has(key) || !after.unlogged.has(key))
      different.push(`${key}: not unlogged everywhere`);
  return {compared: keys.size, different, unlogged: [...before.unlogged]};
}

/** Splits a plain dump at the comments that head its entries. */
function addSections(sections: Map<string, string>, database: string, text: string): void {
  const lines = text.split('\n');
  let key = `${database}: head`;
  let section: string[] = [];
  const end = (): void => {
    let unique = key;
    for (let n = 2; sections.has(unique); n++) unique = `${key} (${n})`;
    sections.set(unique, section.join('\n'));
    section = [];
  };
  for (const [i, line] of lines.entries()) {
    const head = lines[i - 1] === '--' && lines[i + 1] === '--' ? /^-- (?:Data for )?(Name: .*)$/.exec(line) : null;
    if (head !== null) {
      section.pop(); // the -- above
      end();
      key = `${database}: ${head[1]}`;
      section.push('--');
    }
    // Words that pg_dump makes up anew in each run.
    if (!/^\\(un)?restrict /.test(line)) section.push(line);
  }
  end();
}

function query(source: DumpSource, database: string, sql: string): string[][] {
  const text = run('psql', source, ['-X', '-At', '-F', '\t', '-d', database, '-c', sql]);
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.split('\t'));
}

function run(tool: string, {host, port, user}: DumpSource, args: readonly string[]): string {
  return execFileSync(join(postgresBinDir, tool), ['-h', host, '-p', String(port), '-U', user, ...args], {
    maxBuffer: 1 << 30,
    encoding: 'utf8',
  });
}
