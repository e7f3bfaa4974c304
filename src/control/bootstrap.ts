/**
 * The first pages of a project, as a tar stream for the pageserver's import: what initdb makes, or a customer's own directory.
 *
 * initdb runs once per server version; its result is kept, and every project gets it with a system identifier of its own. WAL is
 * left out: the pageserver begins the branch's history behind the directory's shutdown checkpoint.
 */
import type {Disk} from '#runtime/disk.ts';
import {joinPath} from '#runtime/disk.ts';
import type {Log} from '#runtime/log.ts';
import {changeMode, changeOwner} from '#runtime/permissions.ts';
import {runProcess} from '#runtime/process.ts';
import type {Random} from '#runtime/random.ts';
import {tarDataDirectory} from '#postgres/data-directory.ts';

/** Gives the bytes of a cluster. */
export interface Bootstrap {
  /** A ustar stream of a cleanly shut-down data directory with this system identifier (decimal); a fresh one without `directory`. */
  dataDirectory(systemId: string, directory?: string): Promise<AsyncIterable<Buffer>>;
}

/** The superuser of every cluster: ours, never a customer's. */
const adminRole = 'pagoda_admin';

export class InitdbBootstrap implements Bootstrap {
  readonly #options: {binDir: string; cacheDir: string; systemUser: string; disk: Disk; random: Random; log: Log};
  #template: Promise<string> | undefined;

  constructor(options: {binDir: string; cacheDir: string; systemUser: string; disk: Disk; random: Random; log: Log}) {
    this.#options = options;
  }

  async dataDirectory(systemId: string, directory?: string): Promise<AsyncIterable<Buffer>> {
    // A failed attempt is not remembered: the next one runs initdb again.
    if (directory === undefined)
      this.#template ??= this.#makeTemplate().catch((error: unknown) => {
        this.#template = undefined;
        throw error;
      });
    return tarDataDirectory(this.#options.disk, directory ?? (await this.#template!), BigInt(systemId));
  }

  async #makeTemplate(): Promise<string> {
    const {binDir, cacheDir, systemUser, disk, random, log} = this.#options;
    const {code, stdout} = await runProcess({command: joinPath(binDir, 'initdb'), args: ['--version']});
    const version = /(\d+\.\d+)/.exec(stdout)?.[1];
    if (code !== 0 || version === undefined)
      throw new Error(`${joinPath(binDir, 'initdb')} --version says ${JSON.stringify(stdout)}`);
    const path = joinPath(cacheDir, `initdb-${version}-v3`);
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
        args: ['-D', data, '-U', adminRole, '--encoding=UTF8', '--locale=C.UTF-8', '--auth=trust', '--no-instructions'],
        cwd: directory,
        user: systemUser,
        env: {LC_ALL: 'C.UTF-8', PGDATA: undefined},
      });
      if (initdb.code !== 0) throw new Error(`initdb failed: ${initdb.stderr || initdb.stdout}`);
      disk.remove(joinPath(data, 'pg_wal'));
      disk.rename(data, path);
      disk.syncDirectory(cacheDir);
    } finally {
      disk.remove(directory);
    }
    return path;
  }
}

/**
 * A system identifier in PostgreSQL's manner (BootStrapXLOG: seconds, microseconds and pid), the low bits random.
 * Decimal, below 2^63.
 */
export function newSystemId(nowMs: number, random: Random): string {
  return ((BigInt(Math.floor(nowMs / 1000)) << 32n) | BigInt(random.uint32())).toString();
}
