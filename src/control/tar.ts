/** Just enough ustar (POSIX.1-1988 headers) to pack a data directory. */

const blockBytes = 512;

/** Two zero blocks end an archive. */
export const tarEnd: Buffer = Buffer.alloc(2 * blockBytes);

/** Header, content and padding of one entry. */
export function tarEntry(path: string, type: 'file' | 'directory', content: Buffer): Buffer {
  if (Buffer.byteLength(path) > 100) throw new Error(`path too long for a ustar header: ${path}`);
  const padded = Math.ceil(content.length / blockBytes) * blockBytes;
  const entry = Buffer.alloc(blockBytes + padded);
  entry.write(path, 0, 'utf8');
  octal(entry, type === 'directory' ? 0o700 : 0o600, 100, 8);
  octal(entry, 0, 108, 8); // uid
  octal(entry, 0, 116, 8); // gid
  octal(entry, content.length, 124, 12);
  octal(entry, 0, 136, 12); // mtime
  entry.write(type === 'directory' ? '5' : '0', 156);
  entry.write('ustar\x0000', 257, 'latin1');
  entry.fill(0x20, 148, 156);
  let sum = 0;
  for (let i = 0; i < blockBytes; i++) sum += entry[i]!;
  entry.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  content.copy(entry, blockBytes);
  return entry;
}

/** Bytes of the whole entry that this header opens; undefined for the zero block that ends the archive. */
export function tarEntrySize(header: Buffer): number | undefined {
  if (header[0] === 0) return undefined;
  const size = parseInt(header.toString('latin1', 124, 135), 8);
  return blockBytes + Math.ceil(size / blockBytes) * blockBytes;
}

export function tarPath(header: Buffer): string {
  const end = header.indexOf(0);
  return header.toString('utf8', 0, Math.min(end < 0 ? 100 : end, 100));
}

function octal(entry: Buffer, value: number, offset: number, length: number): void {
  entry.write(value.toString(8).padStart(length - 1, '0'), offset, 'latin1');
}
