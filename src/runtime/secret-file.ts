/** Files that hold secrets (keys, configurations with tokens): only their owner may read them. */
import * as fs from 'node:fs';

/**
 * Reads a file that must be private: a regular file (not a symlink), readable by nobody but its owner.
 * Throws an Error that names the path and the command that mends it.
 */
export function readSecretFile(path: string): string {
  const s = fs.lstatSync(path, {throwIfNoEntry: false});
  if (!s) throw new Error(`${path} is missing`);
  if (!s.isFile())
    throw new Error(`${path} must be a regular file; refusing to read a secret through a link or device`);
  if ((s.mode & 0o077) !== 0)
    throw new Error(`${path} can be read by others (mode ${(s.mode & 0o777).toString(8)}); run: chmod 600 ${path}`);
  return fs.readFileSync(path, 'utf8');
}
