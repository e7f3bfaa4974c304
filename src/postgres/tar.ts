/**
 * ustar archives (POSIX pax interchange, the plain part), streamed both ways. The reader also understands GNU long names and
 * pax headers for path and size, because users' own `tar` writes them. Base-256 sizes are read, never written.
 */

export interface TarEntry {
  /** Relative, without a leading slash; a directory's without a trailing one. At most 255 bytes with a split at a slash. */
  readonly path: string;
  readonly kind: 'file' | 'directory';
  /** Permission bits. Default 0600 for files, 0700 for directories. */
  readonly mode?: number;
  /** A file's contents. */
  readonly contents?: Buffer;
  /** A file too large for memory: its size and its bytes. Throws when they are not as many. */
  readonly stream?: {readonly size: number; readonly chunks: AsyncIterable<Buffer> | Iterable<Buffer>};
}

export interface TarMember {
  /** As in the archive, without leading `./` and trailing `/`. */
  readonly path: string;
  readonly kind: 'file' | 'directory' | 'symlink' | 'other';
  readonly size: number;
  readonly mode: number;
  readonly linkTarget: string;
  /** The file's bytes. Read it before the next member, or leave it: the rest is passed over. */
  readonly body: AsyncIterable<Buffer>;
  /** Reads the whole body. Throws TarError when it is larger than `bytesMax`. */
  bytes(bytesMax: number): Promise<Buffer>;
}

/** An archive that cannot be read, or an entry that cannot be written. */
export class TarError extends Error {}

const blockSize = 512;
const zeros = Buffer.alloc(blockSize);
/** The longest text header (long name, pax) that is believed. */
const metadataBytesMax = 1024 * 1024;

/** The archive's bytes, end marker included. */
export async function* writeTar(entries: AsyncIterable<TarEntry> | Iterable<TarEntry>): AsyncGenerator<Buffer> {
  for await (const entry of entries) {
    const size = entry.stream?.size ?? entry.contents?.length ?? 0;
    yield entryHeader(entry, size);
    if (entry.stream !== undefined) {
      let written = 0;
      for await (const chunk of entry.stream.chunks) {
        written += chunk.length;
        if (written > size) break;
        yield chunk;
      }
      if (written !== size)
        throw new TarError(`${entry.path}: announced ${size} bytes, got ${written > size ? 'more' : written}`);
    } else if (entry.contents !== undefined && size > 0) {
      yield entry.contents;
    }
    if (size % blockSize !== 0) yield zeros.subarray(size % blockSize);
  }
  yield Buffer.concat([zeros, zeros]);
}

/** The members, in order. Throws TarError when the archive is damaged or ends early. */
export async function* readTar(source: AsyncIterable<Buffer>): AsyncGenerator<TarMember> {
  const input = new ByteSource(source);
  let longName: string | undefined;
  let longLink: string | undefined;
  let pax = new Map<string, string>();
  for (;;) {
    const header = await input.take(blockSize);
    if (header === undefined) {
      if (longName !== undefined || pax.size > 0) throw new TarError('the archive ends inside a member');
      return; // no end marker: some writers leave it out
    }
    if (isZero(header)) {
      await input.drain();
      return;
    }
    checkSum(header);
    const type = String.fromCharCode(header[156]!);
    const plainSize = number(header, 124, 12);
    if (type === 'L' || type === 'K' || type === 'x' || type === 'g') {
      if (plainSize > metadataBytesMax) throw new TarError(`a header of ${plainSize} bytes`);
      const text = (await input.body(plainSize)).toString();
      if (type === 'L') longName = text.replace(/\0.*$/s, '');
      else if (type === 'K') longLink = text.replace(/\0.*$/s, '');
      else if (type === 'x') pax = parsePax(text);
      continue;
    }
    const paxSize = pax.get('size');
    const size = paxSize === undefined ? plainSize : Number(paxSize);
    if (!Number.isSafeInteger(size) || size < 0) throw new TarError(`a member of size ${paxSize ?? plainSize}`);
    const body = new MemberBody(input, type === '0' || type === '\0' || type === '7' ? size : 0);
    const path = normalPath(pax.get('path') ?? longName ?? headerPath(header));
    yield {
      path,
      kind:
        type === '5'
          ? 'directory'
          : type === '2'
            ? 'symlink'
            : type === '0' || type === '\0' || type === '7'
              ? 'file'
              : 'other',
      size: body.size,
      mode: number(header, 100, 8) & 0o7777,
      linkTarget: pax.get('linkpath') ?? longLink ?? text(header, 157, 100),
      body,
      bytes: (bytesMax) => body.bytes(path, bytesMax),
    };
    await body.finish();
    longName = undefined;
    longLink = undefined;
    pax = new Map();
  }
}

class MemberBody implements AsyncIterable<Buffer> {
  readonly size: number;
  readonly #input: ByteSource;
  #left: number;

  constructor(input: ByteSource, size: number) {
    this.#input = input;
    this.size = size;
    this.#left = size;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    for (let chunk = await this.#next(); chunk !== undefined; chunk = await this.#next()) yield chunk;
  }

  async bytes(path: string, bytesMax: number): Promise<Buffer> {
    if (this.size > bytesMax) throw new TarError(`${path} has ${this.size} bytes, at most ${bytesMax} are expected`);
    const chunks: Buffer[] = [];
    for await (const chunk of this) chunks.push(chunk);
    return Buffer.concat(chunks);
  }

  /** Passes over what was not read, and the padding. */
  async finish(): Promise<void> {
    while ((await this.#next()) !== undefined);
    await this.#input.skip(-this.size & (blockSize - 1));
  }

  async #next(): Promise<Buffer | undefined> {
    if (this.#left === 0) return undefined;
    const chunk = await this.#input.some(this.#left);
    this.#left -= chunk.length;
    return chunk;
  }
}

/** Buffers of any size, read by count. */
class ByteSource {
  readonly #source: AsyncIterator<Buffer>;
  #chunk: Buffer = zeros.subarray(0, 0);

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** Exactly `count` bytes; undefined at a clean end. */
  async take(count: number): Promise<Buffer | undefined> {
    if (!(await this.#fill())) return undefined;
    if (this.#chunk.length >= count) return this.#cut(count);
    const bytes = Buffer.allocUnsafe(count);
    for (let at = 0; at < count;) at += (await this.some(count - at)).copy(bytes, at);
    return bytes;
  }

  /** A text header's contents, with its padding passed over. */
  async body(size: number): Promise<Buffer> {
    const bytes = size === 0 ? zeros.subarray(0, 0) : await this.take(size);
    if (bytes === undefined) throw new TarError('the archive ends inside a member');
    await this.skip(-size & (blockSize - 1));
    return bytes;
  }

  /** 1 … countMax bytes. */
  async some(countMax: number): Promise<Buffer> {
    if (!(await this.#fill())) throw new TarError('the archive ends inside a member');
    return this.#cut(Math.min(countMax, this.#chunk.length));
  }

  async skip(count: number): Promise<void> {
    for (let left = count; left > 0;) left -= (await this.some(left)).length;
  }

  async drain(): Promise<void> {
    while (await this.#fill()) this.#chunk = zeros.subarray(0, 0);
  }

  #cut(count: number): Buffer {
    const bytes = this.#chunk.subarray(0, count);
    this.#chunk = this.#chunk.subarray(count);
    return bytes;
  }

  async #fill(): Promise<boolean> {
    while (this.#chunk.length === 0) {
      const next = await this.#source.next();
      if (next.done === true) return false;
      this.#chunk = next.value;
    }
    return true;
  }
}

function entryHeader(entry: TarEntry, size: number): Buffer {
  const directory = entry.kind === 'directory';
  const header = Buffer.alloc(blockSize);
  const path = directory ? `${entry.path}/` : entry.path;
  const [prefix, name] = splitPath(path);
  header.write(name, 0);
  octal(header, 100, 8, entry.mode ?? (directory ? 0o700 : 0o600));
  octal(header, 108, 8, 0);
  octal(header, 116, 8, 0);
  octal(header, 124, 12, size);
  octal(header, 136, 12, 0);
  header.fill(0x20, 148, 156);
  header.write(directory ? '5' : '0', 156);
  header.write('ustar\u000000', 257, 'latin1');
  header.write(prefix, 345);
  header.write(`${sumOf(header).toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return header;
}

function splitPath(path: string): [prefix: string, name: string] {
  if (Buffer.byteLength(path) <= 100) return ['', path];
  for (let at = path.indexOf('/'); at >= 0; at = path.indexOf('/', at + 1)) {
    const prefix = path.slice(0, at);
    const name = path.slice(at + 1);
    if (name.length > 0 && Buffer.byteLength(name) <= 100 && Buffer.byteLength(prefix) <= 155) return [prefix, name];
  }
  throw new TarError(`the path is too long for a tar archive: ${path}`);
}

function octal(header: Buffer, offset: number, width: number, value: number): void {
  const digits = value.toString(8);
  if (digits.length > width - 1) throw new TarError(`${value} does not fit into a tar header`);
  header.write(digits.padStart(width - 1, '0'), offset, 'latin1');
}

function number(header: Buffer, offset: number, width: number): number {
  if ((header[offset]! & 0x80) !== 0) {
    let value = header[offset]! & 0x7f;
    for (let i = 1; i < width; i++) value = value * 256 + header[offset + i]!;
    return value;
  }
  const digits = text(header, offset, width).trim();
  if (!/^[0-7]*$/.test(digits)) throw new TarError(`a header field that is no number: ${JSON.stringify(digits)}`);
  return digits === '' ? 0 : parseInt(digits, 8);
}

function text(header: Buffer, offset: number, width: number): string {
  const end = header.indexOf(0, offset);
  return header.toString('utf8', offset, end < 0 || end > offset + width ? offset + width : end);
}

function headerPath(header: Buffer): string {
  const prefix = header.toString('latin1', 257, 262) === 'ustar' && header[263] === 0x30 ? text(header, 345, 155) : '';
  const name = text(header, 0, 100);
  return prefix === '' ? name : `${prefix}/${name}`;
}

function normalPath(path: string): string {
  const parts = path.split('/').filter((part) => part !== '' && part !== '.');
  if (path.startsWith('/') || parts.includes('..'))
    throw new TarError(`an archive path that leaves the directory: ${JSON.stringify(path)}`);
  return parts.join('/');
}

function parsePax(body: string): Map<string, string> {
  const records = new Map<string, string>();
  const bytes = Buffer.from(body);
  for (let at = 0; at < bytes.length;) {
    const space = bytes.indexOf(0x20, at);
    const length = space < 0 ? NaN : Number(bytes.toString('latin1', at, space));
    if (!Number.isInteger(length) || length <= space - at || at + length > bytes.length)
      throw new TarError('a damaged pax header');
    const record = bytes.toString('utf8', space + 1, at + length - 1);
    const equals = record.indexOf('=');
    if (equals < 0) throw new TarError('a damaged pax header');
    records.set(record.slice(0, equals), record.slice(equals + 1));
    at += length;
  }
  return records;
}

function checkSum(header: Buffer): void {
  const stored = number(header, 148, 8);
  if (sumOf(header) !== stored)
    throw new TarError('not a tar archive, or a damaged one: wrong checksum of a member header');
}

/** The sum of the bytes, with the checksum field taken as spaces. */
function sumOf(header: Buffer): number {
  let sum = 8 * 0x20;
  for (let i = 0; i < blockSize; i++) if (i < 148 || i >= 156) sum += header[i]!;
  return sum;
}

function isZero(bytes: Buffer): boolean {
  return bytes.equals(zeros);
}
