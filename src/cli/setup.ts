/** What the machine must have before anything starts: PostgreSQL's binaries, and the extension built for exactly them. */
import type {Disk} from '#runtime/disk.ts';
import {joinPath} from '#runtime/disk.ts';
import {changeMode, reachableByAll} from '#runtime/permissions.ts';
import {environment, runProcess, runsAsRoot} from '#runtime/process.ts';
import {UsageError} from '#cli/arguments.ts';
import {packageRoot, sharedCache} from '#cli/layout.ts';

export interface Installation {
  /** PostgreSQL's binaries. */
  readonly binDir: string;
  /** For example 15.20. */
  readonly serverVersion: string;
  readonly extensionLibrary: string;
  /** Who Postgres runs as; the present user when that is not root. */
  readonly systemUser: string;
}

const major = 15;
const packages = [`postgresql-${major}`, `postgresql-server-dev-${major}`, 'make', 'gcc'];

/** Idempotent; when all is there it only starts `postgres --version` once. Throws with the command to run when it cannot go on. */
export async function setUp(disk: Disk, report: (line: string) => void): Promise<Installation> {
  const binDir = environment['PAGODA_PG_BIN'] ?? `/usr/lib/postgresql/${major}/bin`;
  if (!disk.exists(joinPath(binDir, 'postgres')))
    await installPackages(disk, report, `PostgreSQL ${major} is not installed`);
  const serverVersion = await readServerVersion(binDir);
  const extensionLibrary = await buildExtension(disk, binDir, serverVersion, report);
  const systemUser = runsAsRoot ? 'postgres' : (environment['USER'] ?? '');
  await checkReadable(extensionLibrary, systemUser);
  return {binDir, serverVersion, extensionLibrary, systemUser};
}

async function readServerVersion(binDir: string): Promise<string> {
  const {code, stdout} = await runProcess({command: joinPath(binDir, 'postgres'), args: ['--version']});
  const version = /\(PostgreSQL\) (\d+\.\d+)/.exec(stdout)?.[1];
  if (code !== 0 || version === undefined)
    throw new UsageError(`${joinPath(binDir, 'postgres')} --version says ${JSON.stringify(stdout)}`);
  if (Number(version.split('.')[0]) !== major)
    throw new UsageError(
      `${binDir} has PostgreSQL ${version}; Pagoda runs ${major} so far. Set PAGODA_PG_BIN to the bin directory of a PostgreSQL ${major}`,
    );
  return version;
}

async function buildExtension(
  disk: Disk,
  binDir: string,
  serverVersion: string,
  report: (line: string) => void,
): Promise<string> {
  const source = joinPath(packageRoot, 'extension');
  // Postgres, another user than root, reads the library.
  const cache = runsAsRoot && !reachableByAll(packageRoot) ? sharedCache : joinPath(packageRoot, '.cache');
  const target = joinPath(cache, 'extension', serverVersion);
  const library = joinPath(target, 'pagoda.so');
  const built = disk.stat(library);
  const sources = disk.exists(source) ? disk.list(source).filter((name) => /\.[ch]$|^Makefile$/.test(name)) : [];
  if (sources.length === 0) throw new UsageError(`the sources of the extension are missing from ${source}`);
  const newest = Math.max(...sources.map((name) => disk.stat(joinPath(source, name))?.mtimeMs ?? 0));
  if (built && built.mtimeMs >= newest) return library;
  const pgConfig = disk.exists(joinPath(binDir, 'pg_config')) ? joinPath(binDir, 'pg_config') : '/usr/bin/pg_config';
  const headers = `/usr/include/postgresql/${major}/server/postgres.h`;
  const tools = await runProcess({command: '/bin/sh', args: ['-c', 'command -v make && command -v gcc']});
  if (
    tools.code !== 0 ||
    !disk.exists(pgConfig) ||
    (environment['PAGODA_PG_BIN'] === undefined && !disk.exists(headers))
  )
    await installPackages(disk, report, 'the extension must be compiled for the installed server');
  report(`compiling the extension for PostgreSQL ${serverVersion} (once)`);
  disk.makeDirectory(target);
  for (const folder of [cache, joinPath(cache, 'extension'), target]) changeMode(folder, 0o755);
  const make = await runProcess({command: 'make', args: ['-C', source, `PG_CONFIG=${pgConfig}`, `BUILD=${target}`]});
  if (make.code !== 0 || !disk.exists(library))
    throw new UsageError(`the extension does not compile:\n${make.stdout}\n${make.stderr}`);
  return library;
}

/** A root process reads everything; Postgres, as another user, may not. */
async function checkReadable(path: string, systemUser: string): Promise<void> {
  if (!runsAsRoot) return;
  const {code} = await runProcess({command: '/usr/bin/test', args: ['-r', path], user: systemUser});
  if (code !== 0)
    throw new UsageError(
      `user ${systemUser} cannot read ${path}, because a directory above is closed to others. Postgres runs as ${systemUser}: move the repository out of a private home directory, or open the path (chmod o+x on each directory)`,
    );
}

/**
 * Endpoints are named `<endpoint>.localhost`. Browsers resolve that by themselves, the C library only with Debian's
 * libnss-myhostname; connection strings of the neon CLI need it. Only comfort: a failure is reported and forgotten.
 */
export async function setUpNames(disk: Disk, report: (line: string) => void): Promise<void> {
  if (await resolves('a-name-of-pagoda.localhost')) return;
  const command = 'apt-get install -y --no-install-recommends libnss-myhostname';
  if (!runsAsRoot || !disk.exists('/usr/bin/apt-get')) {
    report(
      `names such as ep-….localhost do not resolve on this machine; to use connection strings of the neon CLI run once: sudo ${command}`,
    );
    return;
  }
  report('installing libnss-myhostname, so that ep-….localhost resolves (once)');
  const run = await runProcess({
    command: '/bin/sh',
    args: ['-c', `${command} || (apt-get update && ${command})`],
    env: {DEBIAN_FRONTEND: 'noninteractive'},
  });
  if (run.code !== 0) report(`that failed; ep-….localhost does not resolve. To see why: ${command}`);
}

async function resolves(name: string): Promise<boolean> {
  const {code} = await runProcess({command: 'getent', args: ['hosts', name]});
  return code === 0;
}

async function installPackages(disk: Disk, report: (line: string) => void, why: string): Promise<void> {
  const command = `apt-get update && apt-get install -y ${packages.join(' ')}`;
  if (!disk.exists('/usr/bin/apt-get'))
    throw new UsageError(`${why}. Install PostgreSQL ${major} with its server headers, make and a C compiler`);
  if (!runsAsRoot) throw new UsageError(`${why}. Run once: sudo sh -c '${command}'`);
  report(`${why}; installing ${packages.join(', ')} (once)`);
  // Debian's package would start a server of its own on 5432, which nobody asked for.
  disk.makeDirectory('/etc/postgresql-common/createcluster.d');
  const noCluster = '/etc/postgresql-common/createcluster.d/pagoda.conf';
  if (!disk.exists(noCluster)) disk.writeFileAtomic(noCluster, Buffer.from('create_main_cluster = false\n'), 0o644);
  const run = await runProcess({command: '/bin/sh', args: ['-c', command], env: {DEBIAN_FRONTEND: 'noninteractive'}});
  if (run.code !== 0)
    throw new UsageError(`installing packages failed; run it by hand to see why: ${command}\n${run.stderr}`);
}
