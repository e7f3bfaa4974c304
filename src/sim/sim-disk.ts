/**
 * A disk that forgets what was not synced. Each file has a durable image and the writes since its last sync; directory
 * entries made or removed since the last sync of their directory may come back or be lost. A killed process loses
 * nothing; a power cut loses what was not synced.
 */
import type {Disk, DiskFile, DiskStat, OpenMode} from '#runtime/disk.ts';
import type {Random} from '#runtime/random.ts';
import {flushMarkName} from '#safekeeper/flush-mark.ts';
import type {StorageMutation} from '#sim/mutations.ts';

interface Write {
  readonly position: number;
  readonly bytes: Buffer;
}

class FileData {
  /** What reads see. */
  current: Buffer = Buffer.alloc(0);
  size = 0;
  /** What a power cut leaves for sure. */
  durable: Buffer = Buffer.alloc(0);
  durableSize = 0;
  unsynced: Write[] = [];
  /** Writes that were synced, ever. */
  synced = 0;

  write(bytes: Buffer, position: number): void {
    this.current = put(this.current, bytes, position);
    this.size = Math.max(this.size, position + bytes.length);
    // Nobody changes bytes after they were written.
    this.unsynced.push({position, bytes});
  }

  /** The first `count` unsynced writes become durable. */
  sync(count: number): void {
    if (count <= 0) return;
    for (let i = 0; i < count; i++) this.#makeDurable(this.unsynced[i]!);
    if (count === this.unsynced.length) this.unsynced = [];
    else this.unsynced.splice(0, count);
    this.synced += count;
  }

  crash(random: Random): void {
    if (this.unsynced.length === 0 && this.size === this.durableSize) return;
    if (this.unsynced.length > 0) {
      // The kernel writes back in any order: mostly a prefix of the writes, sometimes any of them; the last one may be torn.
      const anyOrder = random.float() < 0.3;
      const keep = Math.floor(random.float() * (this.unsynced.length + 1));
      this.unsynced.forEach((w, i) => {
        if (anyOrder ? random.float() < 0.5 : i < keep) this.#makeDurable(w);
        else if (!anyOrder && i === keep && random.float() < 0.5)
          this.#makeDurable({
            position: w.position,
            bytes: w.bytes.subarray(0, Math.floor(random.float() * w.bytes.length)),
          });
      });
      this.unsynced = [];
    }
    this.current = Buffer.from(this.durable);
    this.size = this.durableSize;
  }

  #makeDurable(w: Write): void {
    this.durable = put(this.durable, w.bytes, w.position);
    this.durableSize = Math.max(this.durableSize, w.position + w.bytes.length);
  }
}

function put(image: Buffer, bytes: Buffer, position: number): Buffer {
  const end = position + bytes.length;
  if (end > image.length) {
    const larger = Buffer.alloc(Math.max(end, image.length * 2, 512));
    image.copy(larger);
    image = larger;
  }
  bytes.copy(image, position);
  return image;
}

/** A file whose sync takes time: what is durable at its end is what was written before its beginning. */
export interface SimFile extends DiskFile {
  beginSync(): () => void;
}

export class SimDisk implements Disk {
  readonly #random: Random;
  readonly #mutations: ReadonlySet<StorageMutation>;
  readonly #files = new Map<string, FileData>();
  /** Files whose directory entry is durable. */
  readonly #durableNames = new Map<string, FileData>();
  readonly #directories = new Set<string>(['/']);
  /** Directories that were renamed since their parent was synced. */
  #renames: {readonly from: string; readonly to: string}[] = [];
  /** The next writes of WAL fail with ENOSPC. */
  full = false;
  /** The next change fails with EIO. */
  failNext = false;
  /** The next writeFileAtomic is cut short between its rename and the fsync of the directory. */
  cutNextReplacement = false;
  /** A node reads its files after a start: some seeded bugs sit there. */
  opening = false;

  constructor(random: Random, mutations: ReadonlySet<StorageMutation> = new Set()) {
    this.#random = random;
    this.#mutations = mutations;
  }

  /** Power cut: back to what is durable, plus whatever the kernel had written by itself. Open files must not be used again. */
  crash(): void {
    for (const {from, to} of this.#renames) {
      if (this.#random.float() < 0.5) moveNames(this.#durableNames, from, to);
      else moveNames(this.#files, to, from);
    }
    this.#renames = [];
    for (const [path, data] of this.#files)
      if (this.#durableNames.get(path) !== data && this.#random.float() < 0.5) this.#durableNames.set(path, data);
    for (const path of this.#durableNames.keys())
      if (!this.#files.has(path) && this.#random.float() < 0.5) this.#durableNames.delete(path);
    this.#files.clear();
    for (const [path, data] of this.#durableNames) {
      data.crash(this.#random);
      this.#files.set(path, data);
    }
    this.full = false;
    this.failNext = false;
    this.cutNextReplacement = false;
  }

  /** The disk is replaced by an empty one. */
  wipe(): void {
    this.#files.clear();
    this.#durableNames.clear();
    this.#renames = [];
    this.full = false;
    this.failNext = false;
    this.cutNextReplacement = false;
  }

  /** Flips a bit on the medium and in the page cache. False: there is no such byte. */
  rot(path: string, position: number): boolean {
    const data = this.#files.get(path);
    if (data === undefined || position >= data.durableSize || position >= data.size) return false;
    data.durable[position] = data.durable[position]! ^ 0x10;
    data.current[position] = data.current[position]! ^ 0x10;
    return true;
  }

  /** Reads what a power cut would leave for sure, for the checkers. */
  durableBytes(path: string, position: number, length: number): Buffer {
    const data = this.#durableNames.get(path);
    const out = Buffer.alloc(length);
    if (data !== undefined && position < data.durableSize)
      data.durable.copy(out, 0, position, Math.min(data.durableSize, position + length));
    return out;
  }

  open(path: string, mode: OpenMode): SimFile {
    let data = this.#files.get(path);
    if (data === undefined) {
      if (mode === 'read' || mode === 'write') throw diskError('ENOENT', path);
      if (this.full) throw diskError('ENOSPC', path);
      data = new FileData();
      this.#files.set(path, data);
    }
    const file = data;
    return {
      size: () => file.size,
      read(buffer, position) {
        const count = Math.max(0, Math.min(buffer.length, file.size - position));
        file.current.copy(buffer, 0, position, position + count);
        return count;
      },
      write: (buffer, position) => this.#write(file, path, buffer, position),
      writev: (buffers, position) => this.#write(file, path, Buffer.concat(buffers), position),
      sync: async () => file.sync(file.unsynced.length),
      syncNow: () => {
        this.#mayFail(path);
        if (this.opening ? this.#mutations.has('page-cache-believed') : this.#mutations.has('truncate-unsynced'))
          return;
        file.sync(file.unsynced.length);
      },
      beginSync() {
        // What is written from now on is not covered; what others have synced meanwhile need not be synced again.
        const target = file.synced + file.unsynced.length;
        return () => file.sync(Math.min(target - file.synced, file.unsynced.length));
      },
      truncate() {
        throw new Error('not used by safekeepers');
      },
      close() {},
    };
  }

  #write(file: FileData, path: string, bytes: Buffer, position: number): void {
    this.#mayFail(path);
    if (this.opening && this.#mutations.has('tail-not-cut')) return;
    if (this.full && position + bytes.length > file.size) {
      // A part of it may have found room.
      const part = Math.floor(this.#random.float() * bytes.length);
      if (part > 0) file.write(bytes.subarray(0, part), position);
      throw diskError('ENOSPC', path);
    }
    file.write(bytes, position);
  }

  exists(path: string): boolean {
    if (this.opening && this.#mutations.has('flush-mark-ignored') && path.endsWith(`/${flushMarkName}`)) return false;
    return this.#files.has(path) || this.#directories.has(path);
  }

  stat(path: string): DiskStat | undefined {
    const data = this.#files.get(path);
    if (data !== undefined) return {size: data.size, isDirectory: false, mtimeMs: 0};
    return this.#directories.has(path) ? {size: 0, isDirectory: true, mtimeMs: 0} : undefined;
  }

  list(directory: string): string[] {
    const prefix = `${directory}/`;
    const names: string[] = [];
    for (const path of this.#files.keys())
      if (path.startsWith(prefix) && !path.includes('/', prefix.length)) names.push(path.slice(prefix.length));
    return names.sort();
  }

  makeDirectory(path: string): void {
    this.#directories.add(path);
  }

  readFile(path: string): Buffer {
    const data = this.#files.get(path);
    if (data === undefined) throw diskError('ENOENT', path);
    return Buffer.from(data.current.subarray(0, data.size));
  }

  writeFileAtomic(path: string, bytes: Buffer): void {
    this.#mayFail(path);
    const old = this.#files.get(path);
    if (old !== undefined && this.#mutations.has('control-file-in-place')) {
      // Cut short, then written, and synced a little later than it should be.
      old.sync(old.unsynced.length);
      old.size = 0;
      old.durableSize = 0;
      old.write(bytes, 0);
      return;
    }
    const data = new FileData();
    data.write(bytes, 0);
    if (!this.#mutations.has('control-file-unsynced')) data.sync(1);
    this.#files.set(path, data);
    if (!this.cutNextReplacement && !this.#mutations.has('control-rename-unsynced')) this.#durableNames.set(path, data);
    this.cutNextReplacement = false;
  }

  rename(from: string, to: string): void {
    this.#mayFail(from);
    moveNames(this.#files, from, to);
    this.#renames.push({from, to});
  }

  linkNew(): void {
    throw new Error('not used by safekeepers');
  }

  remove(path: string): void {
    if (this.opening && this.#mutations.has('tail-not-cut')) return;
    if (this.#files.delete(path)) return;
    const prefix = `${path}/`;
    for (const name of this.#files.keys()) if (name.startsWith(prefix)) this.#files.delete(name);
  }

  syncDirectory(path: string): void {
    this.#mayFail(path);
    if (this.#mutations.has('no-directory-fsync')) return;
    const prefix = `${path}/`;
    this.#renames = this.#renames.filter(({from, to}) => {
      if (to.slice(0, to.lastIndexOf('/')) !== path) return true;
      moveNames(this.#durableNames, from, to);
      return false;
    });
    for (const name of this.#durableNames.keys())
      if (name.startsWith(prefix) && !this.#files.has(name)) this.#durableNames.delete(name);
    for (const [name, data] of this.#files) if (name.startsWith(prefix)) this.#durableNames.set(name, data);
  }

  #mayFail(path: string): void {
    if (!this.failNext) return;
    this.failNext = false;
    throw diskError('EIO', path);
  }
}

/** A directory takes its files along when it is renamed. */
function moveNames(names: Map<string, FileData>, from: string, to: string): void {
  const prefix = `${from}/`;
  const moved = Array.from(names).filter(([name]) => name.startsWith(prefix));
  for (const [name, data] of moved) {
    names.delete(name);
    names.set(`${to}/${name.slice(prefix.length)}`, data);
  }
}

function diskError(code: string, path: string): Error {
  return Object.assign(new Error(`${code}: ${path}`), {code});
}
