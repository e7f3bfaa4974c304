/**
 * The data directory of a cleanly shut-down cluster as a tar stream, in the order in which an import reads best: pg_control
 * first (it says whether the directory is importable, and at which LSN), init forks before all other relation files.
 */
import type {Disk} from '#runtime/disk.ts';
import {type TarEntry, writeTar} from '#postgres/tar.ts';

const chunkBytes = 1024 * 1024;
/** What an import does not read; pg_wal is by far the largest. */
const skippedDirectories = new Set([
  'pg_wal',
  'pg_dynshmem',
  'pg_notify',
  'pg_replslot',
  'pg_serial',
  'pg_snapshots',
  'pg_stat_tmp',
  'pg_subtrans',
  'log',
]);

/** Tar bytes of `directory`. The server must be stopped. Throws what the disk throws. */
export function tarDataDirectory(disk: Disk, directory: string): AsyncGenerator<Buffer> {
  return writeTar(dataDirectoryEntries(disk, directory));
}

function* dataDirectoryEntries(disk: Disk, directory: string): Generator<TarEntry> {
  const controlPath = 'global/pg_control';
  yield {path: controlPath, kind: 'file', contents: disk.readFile(`${directory}/${controlPath}`)};
  const files: string[] = [];
  const walk = function* (relative: string): Generator<TarEntry> {
    for (const name of disk.list(`${directory}/${relative}`).sort()) {
      const path = relative === '' ? name : `${relative}/${name}`;
      if (relative === '' && skippedDirectories.has(name)) continue;
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
