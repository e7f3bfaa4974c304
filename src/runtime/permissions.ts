/** Owners and modes of files: what a root process does before it hands a directory to another system user. */
import * as fs from 'node:fs';
import {dirname} from 'node:path';
import {lookUpUser, runsAsRoot} from '#runtime/process.ts';

export function changeMode(path: string, mode: number): void {
  fs.chmodSync(path, mode);
}

/** Gives the path to a system user when this process is root; otherwise everything belongs to the one user anyway. */
export function changeOwner(path: string, user: string): void {
  if (!runsAsRoot) return;
  const {uid, gid} = lookUpUser(user);
  fs.chownSync(path, uid, gid);
}

/** The absolute path with links resolved; the path itself when it does not exist. */
export function realPath(path: string): string {
  try {
    return fs.realpathSync(path);
  } catch {
    return path;
  }
}

/** True when every user may pass through all existing directories of the path. A private home directory is not. */
export function reachableByAll(path: string): boolean {
  for (let at = path; ; at = dirname(at)) {
    const s = fs.statSync(at, {throwIfNoEntry: false});
    if (s?.isDirectory() && (s.mode & 0o001) === 0) return false;
    if (at === dirname(at)) return true;
  }
}

/** True when neither group nor others may read or write the file. */
export function isPrivate(path: string): boolean {
  return (fs.statSync(path).mode & 0o077) === 0;
}

/** What a process without privileges may still write to the file system of `path`. */
export function freeBytes(path: string): number {
  const {bavail, bsize} = fs.statfsSync(path);
  return bavail * bsize;
}
