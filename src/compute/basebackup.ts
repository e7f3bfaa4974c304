/** A pageserver's basebackup on disk: everything of a data directory but relations. */
import {readTar} from '#postgres/tar.ts';
import type {Disk} from '#runtime/disk.ts';
import {dirname, joinPath} from '#runtime/disk.ts';
import {changeMode, changeOwner} from '#runtime/permissions.ts';

/**
 * Unpacks it. `where` is for errors: tenant, branch, LSN. `isLasting`: the files are on disk when this returns. Answers the ids of the
 * databases.
 */
export async function unpackBasebackup(
  disk: Disk,
  path: string,
  body: AsyncIterable<Buffer>,
  {where, isLasting}: {readonly where: string; readonly isLasting: boolean},
): Promise<number[]> {
  const databases: number[] = [];
  let sawControlFile = false;
  disk.makeDirectory(path);
  for await (const entry of readTar(body)) {
    if (entry.path.startsWith('/') || entry.path.split('/').includes('..'))
      throw new Error(`basebackup names ${JSON.stringify(entry.path)}, which is outside the data directory (${where})`);
    const target = joinPath(path, entry.path);
    if (entry.kind === 'directory') {
      disk.makeDirectory(target);
      continue;
    }
    if (entry.kind !== 'file') throw new Error(`basebackup holds ${entry.path}, a ${entry.kind} (${where})`);
    disk.makeDirectory(dirname(target));
    const file = disk.open(target, 'truncate');
    try {
      let at = 0;
      for await (const part of entry.body) {
        writeSparse(file, part, at);
        at += part.length;
      }
      if (file.size() < entry.size) file.truncate(entry.size);
      if (isLasting) await file.sync();
    } finally {
      file.close();
    }
    const database = /^base\/(\d+)\/PG_VERSION$/.exec(entry.path)?.[1];
    if (database !== undefined) databases.push(Number(database));
    sawControlFile ||= entry.path === 'global/pg_control';
  }
  // pg_control comes last in the stream: a basebackup that was cut off cannot be started.
  if (!sawControlFile)
    throw new Error(`the basebackup ended before pg_control (${where}); the pageserver's log says why`);
  return databases;
}

/** Everything at and below the path belongs to the user; `directoryMode` is what Postgres demands of a directory that is to stay. */
export function giveAway(disk: Disk, path: string, owner: string, directoryMode?: number): void {
  changeOwner(path, owner);
  if (disk.stat(path)?.isDirectory !== true) return;
  if (directoryMode !== undefined) changeMode(path, directoryMode);
  for (const name of disk.list(path)) giveAway(disk, joinPath(path, name), owner, directoryMode);
}

const zeros = Buffer.alloc(65536);

/** A 16 MiB WAL segment is nearly all zeros: holes cost no write. */
export function writeSparse(file: {write(b: Buffer, at: number): void}, part: Buffer, position: number): void {
  for (let at = 0; at < part.length; at += zeros.length) {
    const piece = part.subarray(at, at + zeros.length);
    if (!piece.equals(piece.length === zeros.length ? zeros : zeros.subarray(0, piece.length)))
      file.write(piece, position + at);
  }
}
