/**
 * Page states of the oracle: own redo results, over a copy of the data directory as it was at the start LSN. Every state is
 * chained from own results, never taken from the oracle's images.
 */
import {closeSync, existsSync, openSync, readSync, readdirSync} from 'node:fs';
import {join} from 'node:path';
import {pageSize} from '#redo/bufpage.ts';

const segmentBlocks = 131072;
const forkSuffixes = ['', '_fsm', '_vm', '_init'];

/** All pages of one relation fork that WAL has touched, by block number. */
class ForkState {
  readonly pages = new Map<number, Buffer>();
  /** Blocks from here on are not to be read from the base copy: truncated, or the fork was created after it. */
  baseBlocks = Infinity;
}

export class PageStore {
  readonly #base: string;
  /** By database `spc/db`, then by relation and fork. */
  readonly #databases = new Map<string, Map<number, ForkState>>();
  /** Where the files of a database lie in the base copy, when it is a copy of another one; undefined: nowhere. */
  readonly #baseOf = new Map<string, string | undefined>();
  readonly #files = new Map<string, number | undefined>();

  constructor(base: string) {
    this.#base = base;
  }

  /** The page's own buffer: change it in place. A page unknown to base and WAL is all zeros and `known` false. */
  get(spc: number, db: number, rel: number, fork: number, block: number): {page: Buffer; known: boolean} {
    const state = this.#fork(spc, db, rel, fork);
    const have = state.pages.get(block);
    if (have !== undefined) return {page: have, known: true};
    const page = Buffer.alloc(pageSize);
    const known = block < state.baseBlocks && this.#readBase(spc, db, rel, fork, block, page);
    state.pages.set(block, page);
    return {page, known};
  }

  /** As get(), but makes no page that does not exist. */
  peek(spc: number, db: number, rel: number, fork: number, block: number): Buffer | undefined {
    const {page, known} = this.get(spc, db, rel, fork, block);
    if (!known) this.#fork(spc, db, rel, fork).pages.delete(block);
    return known ? page : undefined;
  }

  /** A new, empty fork. */
  create(spc: number, db: number, rel: number, fork: number): void {
    const state = this.#fork(spc, db, rel, fork);
    state.pages.clear();
    state.baseBlocks = 0;
  }

  truncate(spc: number, db: number, rel: number, fork: number, blocks: number): void {
    const state = this.#fork(spc, db, rel, fork);
    for (const block of state.pages.keys()) if (block >= blocks) state.pages.delete(block);
    state.baseBlocks = Math.min(state.baseBlocks, blocks);
  }

  drop(spc: number, db: number, rel: number): void {
    for (let fork = 0; fork < 4; fork++) this.create(spc, db, rel, fork);
  }

  copyDatabase(fromSpc: number, fromDb: number, spc: number, db: number): void {
    const from = this.#database(fromSpc, fromDb);
    const to = new Map<number, ForkState>();
    for (const [key, state] of from) {
      const copy = new ForkState();
      copy.baseBlocks = state.baseBlocks;
      for (const [block, page] of state.pages) copy.pages.set(block, Buffer.from(page));
      to.set(key, copy);
    }
    this.#databases.set(`${spc}/${db}`, to);
    this.#baseOf.set(`${spc}/${db}`, this.#baseDirectory(fromSpc, fromDb));
  }

  dropDatabase(spc: number, db: number): void {
    this.#databases.delete(`${spc}/${db}`);
    this.#baseOf.set(`${spc}/${db}`, undefined);
  }

  /** All pages that were read or written here. */
  forEach(visit: (spc: number, db: number, rel: number, fork: number, block: number, page: Buffer) => void): void {
    for (const [database, forks] of this.#databases) {
      const [spc, db] = database.split('/').map(Number);
      for (const [key, state] of forks)
        for (const [block, page] of state.pages) visit(spc!, db!, Math.floor(key / 4), key % 4, block, page);
    }
  }

  close(): void {
    for (const file of this.#files.values()) if (file !== undefined) closeSync(file);
    this.#files.clear();
  }

  #database(spc: number, db: number): Map<number, ForkState> {
    const key = `${spc}/${db}`;
    let database = this.#databases.get(key);
    if (database === undefined) this.#databases.set(key, (database = new Map()));
    return database;
  }

  #fork(spc: number, db: number, rel: number, fork: number): ForkState {
    const database = this.#database(spc, db);
    let state = database.get(rel * 4 + fork);
    if (state === undefined) database.set(rel * 4 + fork, (state = new ForkState()));
    return state;
  }

  #baseDirectory(spc: number, db: number): string | undefined {
    const key = `${spc}/${db}`;
    if (this.#baseOf.has(key)) return this.#baseOf.get(key);
    let directory: string | undefined;
    if (spc === 1664) directory = 'global';
    else if (spc === 1663) directory = `base/${db}`;
    else {
      const tablespace = `pg_tblspc/${spc}`;
      const version = existsSync(join(this.#base, tablespace))
        ? readdirSync(join(this.#base, tablespace)).find((name) => name.startsWith('PG_15_'))
        : undefined;
      directory = version === undefined ? undefined : `${tablespace}/${version}/${db}`;
    }
    this.#baseOf.set(key, directory);
    return directory;
  }

  #readBase(spc: number, db: number, rel: number, fork: number, block: number, page: Buffer): boolean {
    const directory = this.#baseDirectory(spc, db);
    if (directory === undefined) return false;
    const segment = Math.floor(block / segmentBlocks);
    const path = join(this.#base, directory, `${rel}${forkSuffixes[fork]}${segment > 0 ? `.${segment}` : ''}`);
    if (!this.#files.has(path)) {
      if (this.#files.size > 1000) this.close();
      this.#files.set(path, existsSync(path) ? openSync(path, 'r') : undefined);
    }
    const file = this.#files.get(path);
    return file !== undefined && readSync(file, page, 0, pageSize, (block % segmentBlocks) * pageSize) === pageSize;
  }
}
