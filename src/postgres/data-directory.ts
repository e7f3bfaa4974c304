/**
 * The data directory of a cleanly shut-down cluster as a tar stream, in the order in which an import reads best: pg_control
 * first (it says whether the directory is importable, and at which LSN), init forks before all other relation files.
 */
import type {Disk} from '#runtime/disk.ts';
import {parseControlFile} from '#postgres/control-file.ts';
import {type TarEntry, writeTar} from '#postgres/tar.ts';

const chunkBytes = 1024 * 1024;
/** What an import reads, or refuses; a directory may hold anything else. */
const packed = new Set([
  'PG_VERSION',
  'backup_label',
  'base',
  'global',
  'pg_commit_ts',
  'pg_logical',
  'pg_multixact',
  'pg_stat',
  'pg_tblspc',
  'pg_twophase',
  'pg_xact',
  'recovery.signal',
  'standby.signal',
]);

/**
 * Tar bytes of `directory`. The server must be stopped. With `systemId` the cluster gets that identifier. Throws what the disk
 * throws, and ControlFileError.
 */
export function tarDataDirectory(disk: Disk, directory: string, systemId?: bigint): AsyncGenerator<Buffer> {
  return writeTar(dataDirectoryEntries(disk, directory, systemId));
}

function* dataDirectoryEntries(disk: Disk, directory: string, systemId: bigint | undefined): Generator<TarEntry> {
  const controlPath = 'global/pg_control';
  let control = disk.readFile(`${directory}/${controlPath}`);
  if (systemId !== undefined) {
    const changed = parseControlFile(control);
    changed.systemId = systemId;
    control = changed.encode();
  }
  yield {path: controlPath, kind: 'file', contents: control};
  const files: string[] = [];
  const walk = function* (relative: string): Generator<TarEntry> {
    for (const name of disk.list(`${directory}/${relative}`).sort()) {
      const path = relative === '' ? name : `${relative}/${name}`;
      if (relative === '' && !packed.has(name)) continue;
      const stat = disk.stat(`${directory}/${path}`);
      if (stat === undefined || path === controlPath || name === 'pgsql_tmp') continue;
      if (!stat.isDirectory) {
        files.push(path);
        continue;
      }
      yield {path, kind: 'directory'};
      yield* walk(path);
    }
  };
  yield* walk('');
  const isInit = (path: string): number => (path.endsWith('_init') ? 0 : 1);
  for (const path of files.sort((a, b) => isInit(a) - isInit(b) || (a < b ? -1 : 1))) {
    const stat = disk.stat(`${directory}/${path}`);
    if (stat === undefined) continue;
    yield {path, kind: 'file', stream: {size: stat.size, chunks: readChunks(disk, `${directory}/${path}`, stat.size)}};
  }
}

function* readChunks(disk: Disk, path: string, size: number): Generator<Buffer> {
  const file = disk.open(path, 'read');
  try {
    for (let at = 0; at < size;) {
      const chunk = Buffer.allocUnsafe(Math.min(chunkBytes, size - at));
      const count = file.read(chunk, at);
      if (count === 0) return;
      yield chunk.subarray(0, count);
      at += count;
    }
  } finally {
    file.close();
  }
}
