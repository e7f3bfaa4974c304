/**
 * Objects as files below a folder: the embedded default, and the reference for what an S3 store must do.
 *
 * A put writes a temporary file, fsyncs it, renames it into place and fsyncs the folder: after a crash an object is there
 * whole or not at all. With `ifNoneMatch` it gets its name by link(2), which fails when the name is taken: exactly one of
 * any number of writers wins, also of different processes.
 */
import {type DiskFile, type LargeFileDisk, joinPath} from '#runtime/disk.ts';
import type {Random} from '#runtime/random.ts';
import {
  type ListedObject,
  type ObjectHead,
  type ObjectStore,
  ObjectStoreError,
  type PutOptions,
  type RangeOptions,
  checkObjectKey,
} from './object-store.ts';

/** Whole objects of this size and more are read and written off the event loop: it would stand still for milliseconds. */
const asideBytesMin = 256 * 1024;
/** Large objects go to the disk in pieces: an fsync of all of it at once would keep commits' fsyncs waiting behind it. */
const syncBytes = 4 * 1024 * 1024;
/** Ranges shorter than this come from the file cache sooner than from another thread. */
const asideRangeBytesMin = 1024 * 1024;
/** Open files kept for range reads. */
const openFilesMax = 64;
const temporaryFolder = '.tmp';
/** Temporary files older than this belong to a process that died. */
const temporaryAgeMsMax = 3_600_000;

export class FolderObjectStore implements ObjectStore {
  readonly #root: string;
  readonly #disk: LargeFileDisk;
  readonly #random: Random;
  /** Files open for reading, least recently used first. Objects never change, so a descriptor stays right. */
  readonly #open = new Map<string, DiskFile>();

  /** `nowMs` decides which temporary files are leftovers. */
  constructor(options: {root: string; disk: LargeFileDisk; random: Random; nowMs: number}) {
    this.#root = options.root;
    this.#disk = options.disk;
    this.#random = options.random;
    const temporary = joinPath(this.#root, temporaryFolder);
    this.#disk.makeDirectory(temporary);
    for (const name of this.#disk.list(temporary)) {
      const path = joinPath(temporary, name);
      const stat = this.#disk.stat(path);
      if (stat !== undefined && options.nowMs - stat.mtimeMs > temporaryAgeMsMax) this.#disk.remove(path);
    }
  }

  async put(key: string, bytes: Buffer, options: PutOptions = {}): Promise<void> {
    checkObjectKey(key);
    const path = this.#path(key);
    const temporary = joinPath(this.#root, temporaryFolder, this.#random.bytes(12).toString('hex'));
    const folder = path.slice(0, path.lastIndexOf('/'));
    try {
      if (options.ifNoneMatch === '*' && this.#disk.exists(path)) throw this.#exists(key);
      const file = this.#disk.openLarge(temporary, 'truncate');
      try {
        if (bytes.length < asideBytesMin) {
          file.write(bytes, 0);
          await file.sync();
        } else {
          for (let at = 0; at < bytes.length; at += syncBytes) {
            await file.writeAside(bytes.subarray(at, at + syncBytes), at);
            await file.sync();
          }
        }
      } finally {
        file.close();
      }
      if (!this.#disk.exists(folder)) this.#makeFolder(key);
      if (options.ifNoneMatch === '*') {
        this.#disk.linkNew(temporary, path);
        this.#disk.remove(temporary);
      } else {
        this.#disk.rename(temporary, path);
        this.#close(path);
      }
      await this.#disk.syncDirectoryAside(folder);
    } catch (error) {
      this.#disk.remove(temporary);
      throw this.#explain(key, error);
    }
  }

  async get(key: string): Promise<Buffer> {
    checkObjectKey(key);
    try {
      const path = this.#path(key);
      const size = this.#disk.stat(path)?.size ?? 0;
      if (size < asideBytesMin) return this.#disk.readFile(path);
      const bytes = Buffer.allocUnsafeSlow(size);
      return bytes.subarray(0, await this.#readAside(path, bytes, 0));
    } catch (error) {
      throw this.#explain(key, error);
    }
  }

  async getRange(key: string, start: number, length: number, {into}: RangeOptions = {}): Promise<Buffer> {
    checkObjectKey(key);
    try {
      const bytes = into === undefined ? Buffer.allocUnsafe(length) : into.subarray(0, length);
      const path = this.#path(key);
      const have =
        length < asideRangeBytesMin ? this.#file(path).read(bytes, start) : await this.#readAside(path, bytes, start);
      if (have !== length)
        throw new ObjectStoreError('bad-range', key, `bytes ${start}+${length} asked, ${have} are there`);
      return bytes;
    } catch (error) {
      throw this.#explain(key, error);
    }
  }

  /** With a descriptor of its own: others may close the one that is kept. */
  async #readAside(path: string, bytes: Buffer, start: number): Promise<number> {
    const file = this.#disk.openLarge(path, 'read');
    try {
      return await file.readAside(bytes, start);
    } finally {
      file.close();
    }
  }

  async head(key: string): Promise<ObjectHead | undefined> {
    checkObjectKey(key);
    const stat = this.#disk.stat(this.#path(key));
    return stat === undefined || stat.isDirectory ? undefined : {size: stat.size, modifiedMs: stat.mtimeMs};
  }

  async list(prefix: string): Promise<ListedObject[]> {
    const found: ListedObject[] = [];
    const cut = prefix.lastIndexOf('/');
    this.#walk(cut < 0 ? '' : prefix.slice(0, cut), prefix, found);
    return found.sort((x, y) => (x.key < y.key ? -1 : 1));
  }

  async delete(keys: readonly string[]): Promise<void> {
    const folders = new Set<string>();
    for (const key of keys) {
      checkObjectKey(key);
      const path = this.#path(key);
      this.#close(path);
      this.#disk.remove(path);
      folders.add(path.slice(0, path.lastIndexOf('/')));
    }
    for (const folder of folders) if (this.#disk.exists(folder)) await this.#disk.syncDirectoryAside(folder);
  }

  /** Closes the files kept open for reading. */
  close(): void {
    for (const file of this.#open.values()) file.close();
    this.#open.clear();
  }

  #path(key: string): string {
    return `${this.#root}/${key}`;
  }

  /** Makes the folders of a key, each durable in its parent. */
  #makeFolder(key: string): void {
    let path = this.#root;
    for (const segment of key.split('/').slice(0, -1)) {
      const child = `${path}/${segment}`;
      if (!this.#disk.exists(child)) {
        this.#disk.makeDirectory(child);
        this.#disk.syncDirectory(path);
      }
      path = child;
    }
  }

  #walk(folder: string, prefix: string, found: ListedObject[]): void {
    const base = folder === '' ? this.#root : this.#path(folder);
    if (!this.#disk.exists(base)) return;
    for (const name of this.#disk.list(base)) {
      const key = folder === '' ? name : `${folder}/${name}`;
      if (key === temporaryFolder) continue;
      if (!key.startsWith(prefix) && !prefix.startsWith(`${key}/`)) continue;
      const stat = this.#disk.stat(this.#path(key));
      if (stat === undefined) continue;
      if (stat.isDirectory) this.#walk(key, prefix, found);
      else if (key.startsWith(prefix)) found.push({key, size: stat.size, modifiedMs: stat.mtimeMs});
    }
  }

  #file(path: string): DiskFile {
    let file = this.#open.get(path);
    if (file !== undefined) {
      this.#open.delete(path);
    } else {
      file = this.#disk.open(path, 'read');
      if (this.#open.size >= openFilesMax) {
        const [oldest] = this.#open.keys();
        if (oldest !== undefined) this.#close(oldest);
      }
    }
    this.#open.set(path, file);
    return file;
  }

  #close(path: string): void {
    const file = this.#open.get(path);
    if (file === undefined) return;
    this.#open.delete(path);
    file.close();
  }

  #exists(key: string): ObjectStoreError {
    return new ObjectStoreError('exists', key, 'is already there');
  }

  #explain(key: string, error: unknown): Error {
    if (error instanceof ObjectStoreError) return error;
    const {code, message} = error as Error & {code?: string};
    if (code === 'EEXIST') return this.#exists(key);
    if (code === 'ENOENT') return new ObjectStoreError('not-found', key, 'does not exist', {cause: error});
    if (code === 'ENOSPC' || code === 'EDQUOT')
      return new ObjectStoreError('full', key, `no space left below ${this.#root}`, {cause: error});
    return new ObjectStoreError('unavailable', key, message, {cause: error});
  }
}
