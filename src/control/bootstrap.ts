/**
 * The first pages of a project: what initdb makes, as a tar stream for the pageserver's import.
 *
 * initdb runs once per server version; its result is kept as a tar file, and every project gets that with a system identifier
 * of its own. WAL is left out: the pageserver begins the branch's history behind the template's shutdown checkpoint.
 */
import {crc32c} from '#runtime/crc.ts';
import type {Disk} from '#runtime/disk.ts';
import {joinPath} from '#runtime/disk.ts';
import type {Log} from '#runtime/log.ts';
import {changeMode, changeOwner} from '#runtime/permissions.ts';
import {runProcess} from '#runtime/process.ts';
import type {Random} from '#runtime/random.ts';
import {tarEnd, tarEntry, tarEntrySize, tarPath} from '#control/tar.ts';

/** Gives the bytes of a fresh cluster. */
export interface Bootstrap {
  /** A ustar stream of a cleanly shut-down data directory with this system identifier (decimal). */
  dataDirectory(systemId: string): Promise<AsyncIterable<Buffer>>;
}

/** The superuser of every cluster: ours, never a customer's. */
const adminRole = 'pagoda_admin';
const controlFilePath = 'global/pg_control';
/** Offset of `crc` in ControlFileData, PostgreSQL 15 (src/include/catalog/pg_control.h). */
const controlFileCrcOffset = 288;
const chunkBytes = 1024 * 1024;

export class InitdbBootstrap implements Bootstrap {
  readonly #options: {binDir: string; cacheDir: string; systemUser: string; disk: Disk; random: Random; log: Log};
  #template: Promise<string> | undefined;

  constructor(options: {binDir: string; cacheDir: string; systemUser: string; disk: Disk; random: Random; log: Log}) {
    this.#options = options;
  }

  async dataDirectory(systemId: string): Promise<AsyncIterable<Buffer>> {
    // A failed attempt is not remembered: the next one runs initdb again.
    this.#template ??= this.#makeTemplate().catch((error: unknown) => {
      this.#template = undefined;
      throw error;
    });
    return streamTemplate(this.#options.disk, await this.#template, BigInt(systemId));
  }

  async #makeTemplate(): Promise<string> {
    const {binDir, cacheDir, systemUser, disk, random, log} = this.#options;
    const {code, stdout} = await runProcess({command: joinPath(binDir, 'initdb'), args: ['--version']});
    const version = /(\d+\.\d+)/.exec(stdout)?.[1];
    if (code !== 0 || version === undefined)
      throw new Error(`${joinPath(binDir, 'initdb')} --version says ${JSON.stringify(stdout)}`);
    const path = joinPath(cacheDir, `initdb-${version}-v2.tar`);
    if (disk.exists(path)) return path;
    log.info('making the template of new projects with initdb (once)', {version});
    const directory = joinPath(cacheDir, `initdb-${random.bytes(6).toString('hex')}`);
    disk.makeDirectory(directory);
    changeMode(cacheDir, 0o711);
    changeOwner(directory, systemUser);
    try {
      const data = joinPath(directory, 'data');
      const initdb = await runProcess({
        command: joinPath(binDir, 'initdb'),
        args: [
          '-D',
          data,
          '-U',
          adminRole,
          '--encoding=UTF8',
          '--locale=C.UTF-8',
          '--auth=trust',
          '--no-sync',
          '--no-instructions',
        ],
        cwd: directory,
        user: systemUser,
        env: {LC_ALL: 'C.UTF-8', PGDATA: undefined},
      });
      if (initdb.code !== 0) throw new Error(`initdb failed: ${initdb.stderr || initdb.stdout}`);
      const temporary = `${path}.${random.bytes(4).toString('hex')}`;
      writeTemplate(disk, data, temporary);
      disk.rename(temporary, path);
      disk.syncDirectory(cacheDir);
    } finally {
      disk.remove(directory);
    }
    return path;
  }
}

/** Packed already, or of a running server only. */
const notPacked = new Set([controlFilePath, 'postmaster.pid', 'postmaster.opts']);

/** Packs the directory, pg_control first; of pg_wal only the empty folders. */
function writeTemplate(disk: Disk, data: string, target: string): void {
  const file = disk.open(target, 'truncate');
  let position = 0;
  const write = (bytes: Buffer): void => {
    file.write(bytes, position);
    position += bytes.length;
  };
  const walk = (relative: string): void => {
    for (const name of disk.list(joinPath(data, relative))) {
      const path = relative === '' ? name : `${relative}/${name}`;
      const stat = disk.stat(joinPath(data, path));
      if (!stat) continue;
      if (stat.isDirectory) {
        write(tarEntry(`${path}/`, 'directory', Buffer.alloc(0)));
        walk(path);
      } else if (!path.startsWith('pg_wal/') && !notPacked.has(path))
        write(tarEntry(path, 'file', disk.readFile(joinPath(data, path))));
    }
  };
  try {
    // First, so that the pageserver knows the LSN of everything that follows.
    write(tarEntry('global/', 'directory', Buffer.alloc(0)));
    write(tarEntry(controlFilePath, 'file', disk.readFile(joinPath(data, controlFilePath))));
    walk('');
    write(tarEnd);
    file.syncNow();
  } finally {
    file.close();
  }
}

async function* streamTemplate(disk: Disk, path: string, systemId: bigint): AsyncIterable<Buffer> {
  const file = disk.open(path, 'read');
  try {
    const size = file.size();
    const header = Buffer.alloc(512);
    let sawControlFile = false;
    for (let at = 0; at < size;) {
      file.read(header, at);
      const entrySize = tarEntrySize(header);
      if (entrySize === undefined) {
        yield tarEnd;
        break;
      }
      if (tarPath(header) === controlFilePath) {
        const entry = Buffer.alloc(entrySize);
        file.read(entry, at);
        setSystemIdentifier(entry.subarray(512), systemId);
        sawControlFile = true;
        yield entry;
      } else
        for (let done = 0; done < entrySize; done += chunkBytes) {
          const chunk = Buffer.alloc(Math.min(chunkBytes, entrySize - done));
          file.read(chunk, at + done);
          yield chunk;
        }
      at += entrySize;
    }
    if (!sawControlFile) throw new Error(`${path} has no ${controlFilePath}; delete it, it is made again`);
  } finally {
    file.close();
  }
}

/** Writes the identifier, the first field of pg_control, and the CRC-32C over everything before it. */
export function setSystemIdentifier(controlFile: Buffer, systemId: bigint): void {
  const before = crc32c(controlFile.subarray(0, controlFileCrcOffset));
  if (before !== controlFile.readUInt32LE(controlFileCrcOffset))
    throw new Error(
      'pg_control of the initdb template has a wrong checksum: not a PostgreSQL 15 control file, or a broken one',
    );
  controlFile.writeBigUInt64LE(systemId, 0);
  controlFile.writeUInt32LE(crc32c(controlFile.subarray(0, controlFileCrcOffset)), controlFileCrcOffset);
}

/**
 * A system identifier in PostgreSQL's manner (BootStrapXLOG: seconds, microseconds and pid), the low bits random.
 * Decimal, below 2^63.
 */
export function newSystemId(nowMs: number, random: Random): string {
  return ((BigInt(Math.floor(nowMs / 1000)) << 32n) | BigInt(random.uint32())).toString();
}
