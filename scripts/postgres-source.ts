/**
 * PostgreSQL's own source package, for its test suites: fetched with apt from the machine's own Debian archive into a
 * cache, without touching the machine's apt configuration. The newest source that the archive still has is taken; a
 * suite is judged against vanilla with the same files, so it need not equal the installed minor.
 */
import {execFileSync} from 'node:child_process';
import {existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';

const cache =
  process.env['PAGODA_SOURCE_CACHE'] ??
  (process.getuid?.() === 0 ? '/var/cache/pagoda' : join(import.meta.dirname, '..', '.cache', 'source'));

function find(): string | undefined {
  if (!existsSync(cache)) return undefined;
  const name = readdirSync(cache)
    .filter(
      (n) => /^postgresql-15-15\.\d+$/.test(n) && existsSync(join(cache, n, 'src/test/regress/parallel_schedule')),
    )
    .sort((a, b) => Number(b.split('.')[1]) - Number(a.split('.')[1]))[0];
  return name && join(cache, name);
}

/** The folder of the unpacked source. Throws with apt's last words when it is not to be had. */
export function postgresSource(): string {
  const there = find();
  if (there !== undefined) return there;
  mkdirSync(cache, {recursive: true});
  const apt = join(cache, 'apt');
  for (const d of ['lists/partial', 'parts', 'archives/partial']) mkdirSync(join(apt, d), {recursive: true});
  writeFileSync(join(apt, 'parts', 'source.sources'), sourceStanzas());
  const options = [
    '-o',
    `Dir::Etc::SourceList=/dev/null`,
    '-o',
    `Dir::Etc::SourceParts=${apt}/parts`,
    '-o',
    `Dir::State::Lists=${apt}/lists`,
    '-o',
    'APT::Sandbox::User=root',
    '-qq',
  ];
  const run = (command: string, args: string[]): string =>
    execFileSync(command, args, {cwd: cache, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe']});
  try {
    run('apt-get', [...options, 'update']);
    const versions = [...run('apt-cache', [...options, 'showsrc', 'postgresql-15']).matchAll(/^Version: (\S+)$/gm)].map(
      (m) => m[1]!,
    );
    // An index may name a version whose files are gone: try from the newest.
    for (const version of [...new Set(versions)].sort().reverse()) {
      try {
        run('apt-get', [...options, 'source', `postgresql-15=${version}`]);
      } catch {
        continue;
      }
      const found = find();
      if (found !== undefined) return found;
    }
    throw new Error(`none of the versions ${versions.join(', ')} could be fetched`);
  } catch (error) {
    throw new Error(
      `the source package postgresql-15 could not be fetched: ${(error as {stderr?: string}).stderr ?? (error as Error).message}`,
      {cause: error},
    );
  } finally {
    rmSync(apt, {recursive: true, force: true});
  }
}

/** The machine's Debian sources, as deb-src. */
function sourceStanzas(): string {
  const stanzas: string[] = [];
  const parts = '/etc/apt/sources.list.d';
  for (const name of existsSync(parts) ? readdirSync(parts) : [])
    if (name.endsWith('.sources')) stanzas.push(...readFileSync(join(parts, name), 'utf8').split(/\n\s*\n/));
  for (const line of existsSync('/etc/apt/sources.list')
    ? readFileSync('/etc/apt/sources.list', 'utf8').split('\n')
    : []) {
    const m = /^deb(?:\s+\[[^\]]*\])?\s+(\S+)\s+(\S+)\s+(.+)$/.exec(line.trim());
    if (m) stanzas.push(`Types: deb\nURIs: ${m[1]}\nSuites: ${m[2]}\nComponents: ${m[3]}`);
  }
  return stanzas
    .filter((s) => /^URIs:.*debian/m.test(s))
    .map((s) => s.replace(/^Types:.*$/m, 'Types: deb-src').trim())
    .join('\n\n')
    .concat('\n');
}
