/**
 * `sh scripts/node scripts/complete-lockfile.ts`, after every change of dependencies: adds what package-lock.json lacks.
 *
 * Tools with native parts name one optional package per platform. A registry mirror that has only some of them makes npm
 * write a lockfile without the others, which `npm ci` then refuses everywhere. What it needs to know about a package of
 * another platform is only that it is one: version, os, cpu and libc, which follow from the name.
 */
import {joinPath, systemDisk} from '#runtime/disk.ts';
import {printLine} from '#runtime/process.ts';

interface LockEntry {
  readonly version?: string;
  readonly dev?: boolean;
  readonly optional?: boolean;
  readonly os?: readonly string[];
  readonly cpu?: readonly string[];
  readonly libc?: readonly string[];
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

const root = joinPath(import.meta.dirname, '..');
const path = joinPath(root, 'package-lock.json');
/** scripts/node installs everything anew when the lockfile is newer than this. */
const stamp = joinPath(root, 'node_modules', '.package-lock.json');
const isInstalled = (systemDisk.stat(stamp)?.mtimeMs ?? 0) >= (systemDisk.stat(path)?.mtimeMs ?? 0);
const lock = JSON.parse(systemDisk.readFile(path).toString('utf8')) as {packages: Record<string, LockEntry>};

/** `@oxlint/binding-linux-arm64-musl` → linux, arm64, musl. */
function platformOf(name: string): {os: string; cpu: string; libc?: 'glibc' | 'musl'} | undefined {
  const match = /(android|darwin|freebsd|linux|openharmony|win32|wasm32)-?([a-z0-9]*)-?(\w*)$/.exec(
    name.split('/').at(-1) ?? '',
  );
  const [, os, cpu, abi = ''] = match ?? [];
  if (os === undefined || cpu === undefined || cpu === '') return undefined;
  if (os !== 'linux') return {os, cpu};
  return {os, cpu, libc: abi.startsWith('musl') ? 'musl' : 'glibc'};
}

const added: string[] = [];
for (const entry of Object.values(lock.packages))
  for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
    const key = `node_modules/${name}`;
    if (lock.packages[key] !== undefined) continue;
    const platform = platformOf(name);
    if (platform === undefined) throw new Error(`${name} is optional and missing, and its name tells no platform`);
    const {os, cpu, libc} = platform;
    lock.packages[key] = {
      version,
      cpu: [cpu],
      ...(entry.dev === true ? {dev: true} : {}),
      ...(libc === undefined ? {} : {libc: [libc]}),
      optional: true,
      os: [os],
    };
    added.push(name);
  }

if (added.length > 0) {
  lock.packages = Object.fromEntries(
    Object.entries(lock.packages).toSorted(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)),
  );
  systemDisk.writeFileAtomic(path, Buffer.from(`${JSON.stringify(lock, undefined, 2)}\n`), 0o644);
  // Nothing of this platform changed: what is installed stays, also under those who are using it at this moment.
  if (isInstalled) systemDisk.writeFileAtomic(stamp, systemDisk.readFile(stamp), 0o644);
}
printLine(`${added.length} packages of other platforms added to package-lock.json`);
