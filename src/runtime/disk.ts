/** Files, as durable code needs them. Synchronous where the page cache answers; fsync leaves the event loop. */
import * as fs from 'node:fs';
import {open} from 'node:fs/promises';
import {dirname, join, resolve} from 'node:path';
import {failpoint} from '#runtime/failpoint.ts';

export interface DiskFile {
  size(): number;
  /** pread; returns the bytes read, less than asked only at the end of the file. */
  read(buffer: Buffer, position: number): number;
  /** pwrite of the whole buffer. */
  write(buffer: Buffer, position: number): void;
  /** pwritev of all buffers, one after the other. */
  writev(buffers: readonly Buffer[], position: number): void;
  /** fdatasync off the event loop. After a rejection the file must not be trusted: stop the node (invariant 6). */
  sync(): Promise<void>;
  syncNow(): void;
  truncate(size: number): void;
  close(): void;
}

/** Off the event loop, for what takes milliseconds; until the end nobody else may use the buffer. */
export interface LargeFile extends DiskFile {
  readAside(buffer: Buffer, position: number): Promise<number>;
  writeAside(buffer: Buffer, position: number): Promise<void>;
}

export type OpenMode = 'read' | 'write' | 'create' | 'truncate';

export interface DiskStat {
  readonly size: number;
  readonly isDirectory: boolean;
  readonly mtimeMs: number;
}

/** Failures are Errors with the system's `code` (ENOENT, ENOSPC, EIO, …). */
export interface Disk {
  /** `write` = read-write, must exist; `create` = read-write, made if missing; `truncate` = emptied or made. */
  open(path: string, mode: OpenMode): DiskFile;
  exists(path: string): boolean;
  stat(path: string): DiskStat | undefined;
  list(directory: string): string[];
  /** Recursive; an existing one is fine. */
  makeDirectory(path: string): void;
  readFile(path: string): Buffer;
  /** Temporary file, fsync, rename, fsync of the directory: after a crash the old or the new content is there. */
  writeFileAtomic(path: string, bytes: Buffer, mode?: number): void;
  rename(from: string, to: string): void;
  /** A second name for a file; fails with EEXIST when `to` is taken: the kernel decides, also between processes. */
  linkNew(from: string, to: string): void;
  /** Recursive; a missing one is fine. */
  remove(path: string): void;
  syncDirectory(path: string): void;
}

/** A disk for whole objects of many megabytes: the event loop has others to serve meanwhile. */
export interface LargeFileDisk extends Disk {
  openLarge(path: string, mode: OpenMode): LargeFile;
  syncDirectoryAside(path: string): Promise<void>;
}

class SystemFile implements LargeFile {
  readonly #fd: number;
  readonly #path: string;
  constructor(fd: number, path: string) {
    this.#fd = fd;
    this.#path = path;
  }
  size(): number {
    return fs.fstatSync(this.#fd).size;
  }
  read(buffer: Buffer, position: number): number {
    let done = 0;
    while (done < buffer.length) {
      const n = fs.readSync(this.#fd, buffer, done, buffer.length - done, position + done);
      if (n === 0) break;
      done += n;
    }
    return done;
  }
  write(buffer: Buffer, position: number): void {
    let done = 0;
    while (done < buffer.length) done += fs.writeSync(this.#fd, buffer, done, buffer.length - done, position + done);
  }
  async readAside(buffer: Buffer, position: number): Promise<number> {
    let done = 0;
    while (done < buffer.length) {
      const n = await new Promise<number>((resolve, reject) =>
        fs.read(this.#fd, buffer, done, buffer.length - done, position + done, (error, bytes) =>
          error === null ? resolve(bytes) : reject(error),
        ),
      );
      if (n === 0) break;
      done += n;
    }
    return done;
  }
  async writeAside(buffer: Buffer, position: number): Promise<void> {
    for (let done = 0; done < buffer.length;)
      done += await new Promise<number>((resolve, reject) =>
        fs.write(this.#fd, buffer, done, buffer.length - done, position + done, (error, bytes) =>
          error === null ? resolve(bytes) : reject(error),
        ),
      );
  }
  writev(buffers: readonly Buffer[], position: number): void {
    let total = 0;
    for (const b of buffers) total += b.length;
    const written = fs.writevSync(this.#fd, buffers as Buffer[], position);
    if (written === total) return;
    // A short write is rare (signal, nearly full disk): finish buffer by buffer, so that ENOSPC surfaces.
    this.write(Buffer.concat(buffers).subarray(written), position + written);
  }
  sync(): Promise<void> {
    return new Promise((resolve, reject) => {
      failpoint('disk.fdatasync.before');
      fs.fdatasync(this.#fd, (error) => {
        if (error) reject(new Error(`fdatasync of ${this.#path} failed: ${error.message}`, {cause: error}));
        else resolve();
      });
    });
  }
  syncNow(): void {
    fs.fdatasyncSync(this.#fd);
  }
  truncate(size: number): void {
    fs.ftruncateSync(this.#fd, size);
  }
  close(): void {
    fs.closeSync(this.#fd);
  }
}

const openFlags: Record<OpenMode, number> = {
  read: fs.constants.O_RDONLY,
  write: fs.constants.O_RDWR,
  create: fs.constants.O_RDWR | fs.constants.O_CREAT,
  truncate: fs.constants.O_RDWR | fs.constants.O_CREAT | fs.constants.O_TRUNC,
};

let temporaryFiles = 0;

const openFile = (path: string, mode: OpenMode): SystemFile =>
  new SystemFile(fs.openSync(path, openFlags[mode], 0o600), path);

export const systemDisk: LargeFileDisk = {
  open: openFile,
  openLarge: openFile,
  exists: (path) => fs.existsSync(path),
  stat(path) {
    const s = fs.statSync(path, {throwIfNoEntry: false});
    return s && {size: s.size, isDirectory: s.isDirectory(), mtimeMs: s.mtimeMs};
  },
  list: (directory) => fs.readdirSync(directory).sort(),
  makeDirectory: (path) => void fs.mkdirSync(path, {recursive: true, mode: 0o700}),
  readFile: (path) => fs.readFileSync(path),
  writeFileAtomic(path, bytes, mode = 0o600) {
    const temporary = `${path}.tmp${process.pid}-${temporaryFiles++}`;
    const fd = fs.openSync(temporary, 'wx', mode);
    try {
      failpoint('disk.replace-write.before');
      for (let done = 0; done < bytes.length;) done += fs.writeSync(fd, bytes, done);
      failpoint('disk.replace-write.after');
      fs.fsyncSync(fd);
      failpoint('disk.replace-fsync.after');
    } catch (error) {
      fs.closeSync(fd);
      fs.rmSync(temporary, {force: true});
      throw error;
    }
    fs.closeSync(fd);
    fs.renameSync(temporary, path);
    failpoint('disk.replace-rename.after');
    systemDisk.syncDirectory(dirname(path));
    failpoint('disk.replace-directory-sync.after');
  },
  rename: (from, to) => fs.renameSync(from, to),
  linkNew: (from, to) => fs.linkSync(from, to),
  remove: (path) => fs.rmSync(path, {recursive: true, force: true}),
  syncDirectory(path) {
    const fd = fs.openSync(path, 'r');
    try {
      fs.fsyncSync(fd);
    } finally {
      fs.closeSync(fd);
    }
  },
  async syncDirectoryAside(path) {
    const directory = await open(path, 'r');
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
  },
};

export {dirname, join as joinPath, resolve as absolutePath};

/** The old or the new content, for other processes; after a power cut anything. For what is thrown away at a restart anyhow. */
export function replaceFile(disk: Disk, path: string, bytes: Buffer): void {
  const temporary = `${path}.new${process.pid}`;
  const file = disk.open(temporary, 'truncate');
  try {
    file.write(bytes, 0);
  } finally {
    file.close();
  }
  disk.rename(temporary, path);
}
