/**
 * A disk that forgets what was not synced. Each file has a durable image and the writes since its last sync; directory
 * entries made or removed since the last sync of their directory may come back or be lost. A killed process loses
 * nothing; a power cut loses what was not synced.
 */
import type {Disk, DiskFile, DiskStat, OpenMode} from '#runtime/disk.ts';
import type {Random} from '#runtime/random.ts';

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

  write(bytes: Buffer, position: number): void {
    this.current = put(this.current, bytes, position);
    this.size = Math.max(this.size, position + bytes.length);
    this.unsynced.push({position, bytes: Buffer.from(bytes)});
  }

  /** The first `count` unsynced writes become durable. */
  sync(count: number): void {
    for (const w of this.unsynced.splice(0, count)) this.#makeDurable(w);
  }

  crash(random: Random): void {
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
  readonly #files = new Map<string, FileData>();
  /** Files whose directory entry is durable. */
  readonly #durableNames = new Map<string, FileData>();
  readonly #directories = new Set<string>(['/']);
  /** The next writes of WAL fail with ENOSPC. */
  full = false;
  /** The next writeFileAtomic is cut short between its rename and the fsync of the directory. */
  cutNextReplacement = false;

  constructor(random: Random) {
    this.#random = random;
  }

  /** Power cut: back to what is durable, plus whatever the kernel had written by itself. Open files must not be used again. */
  crash(): void {
    for (const [path, data] of this.#files)
      if (this.#durableNames.get(path) !== data && this.#random.float() < 0.5) this.#durableNames.set(path, data);
    for (const path of this.#durableNames.keys())
      if (!this.#files.has(path) && this.#random.float() < 0.5) this.#durableNames.delete(path);
    this.#files.clear();
    for (const [path, data] of this.#durableNames) {
      data.crash(this.#random);
      this.#files.set(path, data);
    }
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
      syncNow: () => file.sync(file.unsynced.length),
      beginSync() {
        const writes = [...file.unsynced];
        return () => {
          // Writes may have been synced by others meanwhile; those that began later stay unsynced.
          let count = 0;
          while (count < file.unsynced.length && writes.includes(file.unsynced[count]!)) count++;
          file.sync(count);
        };
      },
      truncate() {
        throw new Error('not used by safekeepers');
      },
      close() {},
    };
  }

  #write(file: FileData, path: string, bytes: Buffer, position: number): void {
    if (this.full && position + bytes.length > file.size) {
      // A part of it may have found room.
      const part = Math.floor(this.#random.float() * bytes.length);
      if (part > 0) file.write(bytes.subarray(0, part), position);
      throw diskError('ENOSPC', path);
    }
    file.write(bytes, position);
  }

  exists(path: string): boolean {
    return this.#files.has(path) || this.#directories.has(path);
  }

  stat(path: string): DiskStat | undefined {
    const data = this.#files.get(path);
    if (data !== undefined) return {size: data.size, isDirectory: false, mtimeMs: 0};
    return this.#directories.has(path) ? {size: 0, isDirectory: true, mtimeMs: 0} : undefined;
  }

  list(directory: string): string[] {
    const prefix = `${directory}/`;
    return [...this.#files.keys()]
      .filter((path) => path.startsWith(prefix))
      .map((path) => path.slice(prefix.length))
      .sort();
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
    const data = new FileData();
    data.write(bytes, 0);
    data.sync(1);
    this.#files.set(path, data);
    if (!this.cutNextReplacement) this.#durableNames.set(path, data);
    this.cutNextReplacement = false;
  }

  rename(): void {
    throw new Error('not used by safekeepers');
  }

  linkNew(from: string, to: string): void {
    const data = this.#files.get(from);
    if (data === undefined) throw diskError('ENOENT', from);
    if (this.#files.has(to)) throw diskError('EEXIST', to);
    this.#files.set(to, data);
  }

  remove(path: string): void {
    this.#files.delete(path);
  }

  syncDirectory(path: string): void {
    const prefix = `${path}/`;
    for (const name of this.#durableNames.keys())
      if (name.startsWith(prefix) && !this.#files.has(name)) this.#durableNames.delete(name);
    for (const [name, data] of this.#files) if (name.startsWith(prefix)) this.#durableNames.set(name, data);
  }
}

function diskError(code: string, path: string): Error {
  return Object.assign(new Error(`${code}: ${path}`), {code});
}
