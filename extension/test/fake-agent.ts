/** A compute agent that serves the relation files of a cleanly stopped, frozen cluster, as storage would. */
import * as fs from 'node:fs';
import * as net from 'node:net';
import * as path from 'node:path';
import {
  type ForkNumber,
  type RelTag,
  blockSize,
  defaultTablespace,
  globalTablespace,
  relSegmentBlocks,
} from '#postgres/relation.ts';
import {type HydrationListEntry, HydrationSession, type HydrationSource} from '#wire/hydration.ts';
import {type PackedSegment, encodePackedPages, packedCodec} from '#wire/packed-pages.ts';
import {lz4Compress} from '#runtime/compress.ts';
import type {PageRun} from '#wire/pages.ts';

const suffixes = ['', '_fsm', '_vm', '_init'] as const;

export class FakeAgent implements HydrationSource {
  readonly path: string;
  /** Milliseconds each answer takes. */
  delayMs = 0;
  /** No answer to anything while true. */
  hangs = false;
  /** Relation forks that storage refuses to read. */
  broken: ((rel: RelTag) => boolean) | undefined;
  /** What happens to packed pages on their way. */
  damage: ((packed: Buffer) => void) | undefined;
  pagesServed = 0;
  /** Requests that wait for `release`. */
  get waiting(): number {
    return this.#waiting.length;
  }
  /** The most answers that were on their way at once. */
  busiest = 0;
  #underWay = 0;
  packedServed = 0;
  readonly asked: string[] = [];
  readonly #directory: string;
  readonly #server: net.Server;
  readonly #sockets = new Set<net.Socket>();
  readonly #waiting: (() => void)[] = [];

  private constructor(socketPath: string, directory: string) {
    this.path = socketPath;
    this.#directory = directory;
    this.#server = net.createServer((socket) => {
      this.#sockets.add(socket);
      const session = new HydrationSession(this, (parts) => {
        socket.cork();
        for (const part of parts) socket.write(part);
        socket.uncork();
      });
      socket.on('data', (chunk: Buffer) => {
        try {
          session.receive(chunk);
        } catch {
          socket.destroy();
        }
      });
      socket.on('error', () => {});
      socket.on('close', () => {
        this.#sockets.delete(socket);
        session.close();
      });
    });
  }

  static async start(socketPath: string, directory: string): Promise<FakeAgent> {
    const agent = new FakeAgent(socketPath, directory);
    await agent.listen();
    return agent;
  }

  async listen(): Promise<void> {
    fs.rmSync(this.path, {force: true});
    await new Promise<void>((done, fail) => {
      this.#server.once('error', fail);
      this.#server.listen(this.path, () => done());
    });
    fs.chmodSync(this.path, 0o777);
  }

  /** Cuts every connection and, until `listen`, refuses new ones. */
  async close(): Promise<void> {
    this.release();
    const closed = new Promise<void>((done) => this.#server.close(() => done()));
    this.cut();
    await closed;
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Ends a hang: the answers that were held back go out. */
  release(): void {
    this.hangs = false;
    for (const go of this.#waiting.splice(0)) go();
  }

  async relSize(rel: RelTag): Promise<number | undefined> {
    this.asked.push(`size ${rel.spcNode}/${rel.dbNode}/${rel.relNode}${suffixes[rel.fork]}`);
    await this.#pause(rel);
    return this.#blocks(rel);
  }

  async getPages(rel: RelTag, block: number, count: number, packed = false): Promise<PageRun> {
    await this.#pause(rel);
    const blocks = this.#blocks(rel) ?? 0;
    const pages: Buffer[] = [];
    for (let n = block; n < Math.min(block + count, blocks); n++) {
      const page = Buffer.alloc(blockSize);
      const segment = Math.floor(n / relSegmentBlocks);
      const file = fs.openSync(`${this.#file(rel)}${segment > 0 ? `.${segment}` : ''}`, 'r');
      fs.readSync(file, page, 0, blockSize, (n % relSegmentBlocks) * blockSize);
      fs.closeSync(file);
      pages.push(page);
    }
    this.pagesServed += pages.length;
    if (!packed) return {bytes: Buffer.concat(pages), release() {}};
    const bytes = Buffer.concat(encodePackedPages(packLikeStorage(pages)));
    this.packedServed += pages.length;
    this.damage?.(bytes);
    return {bytes, packedPages: pages.length, release() {}};
  }

  async listDb(spcNode: number, dbNode: number): Promise<HydrationListEntry[]> {
    await this.#pause(undefined);
    const entries: HydrationListEntry[] = [];
    for (const {folder, spc, db} of this.#folders()) {
      if ((spcNode !== 0 && spc !== spcNode) || db !== dbNode) continue;
      for (const name of fs.readdirSync(folder)) {
        const match = /^(\d+)(_fsm|_vm|_init)?$/.exec(name);
        if (!match) continue;
        const rel: RelTag = {
          spcNode: spc,
          dbNode: db,
          relNode: Number(match[1]),
          fork: suffixes.indexOf((match[2] ?? '') as '') as ForkNumber,
        };
        const blocks = this.#blocks(rel);
        if (blocks !== undefined) entries.push({rel, blocks});
      }
    }
    return entries;
  }

  async dbSize(dbNode: number): Promise<number | undefined> {
    const entries = await this.listDb(0, dbNode);
    return entries.length === 0 ? undefined : entries.reduce((total, entry) => total + entry.blocks * blockSize, 0);
  }

  async #pause(rel: RelTag | undefined): Promise<void> {
    if (rel && this.broken?.(rel)) throw new Error('the layer is damaged');
    if (this.hangs) await new Promise<void>((go) => this.#waiting.push(go));
    if (this.delayMs === 0) return;
    this.busiest = Math.max(this.busiest, ++this.#underWay);
    await new Promise((done) => setTimeout(done, this.delayMs));
    this.#underWay--;
  }

  /** Of an unlogged relation, storage has the init fork only: the others are not in WAL. */
  #blocks(rel: RelTag): number | undefined {
    const file = this.#file(rel);
    if (!fs.existsSync(file)) return undefined;
    if (rel.fork !== 3 && fs.existsSync(this.#file({...rel, fork: 3}))) return undefined;
    let blocks = 0;
    for (let segment = 0; ; segment++) {
      const status = fs.statSync(`${file}${segment > 0 ? `.${segment}` : ''}`, {throwIfNoEntry: false});
      if (!status) return blocks;
      blocks += status.size / blockSize;
    }
  }

  #file(rel: RelTag): string {
    const name = `${rel.relNode}${suffixes[rel.fork]}`;
    if (rel.spcNode === globalTablespace) return path.join(this.#directory, 'global', name);
    if (rel.spcNode === defaultTablespace) return path.join(this.#directory, 'base', String(rel.dbNode), name);
    const tablespace = path.join(this.#directory, 'pg_tblspc', String(rel.spcNode));
    const version = fs.existsSync(tablespace) ? fs.readdirSync(tablespace)[0] : undefined;
    return path.join(tablespace, version ?? 'none', String(rel.dbNode), name);
  }

  #folders(): {folder: string; spc: number; db: number}[] {
    const found = [{folder: path.join(this.#directory, 'global'), spc: globalTablespace, db: 0}];
    const add = (folder: string, spc: number): void => {
      for (const db of fs.readdirSync(folder))
        if (/^\d+$/.test(db)) found.push({folder: path.join(folder, db), spc, db: Number(db)});
    };
    add(path.join(this.#directory, 'base'), defaultTablespace);
    for (const spc of fs.readdirSync(path.join(this.#directory, 'pg_tblspc'))) {
      const top = path.join(this.#directory, 'pg_tblspc', spc);
      for (const version of fs.readdirSync(top)) add(path.join(top, version), Number(spc));
    }
    return found;
  }
}

/** Three pages to a block, each behind eight bytes; every fourth block is not compressed. */
function packLikeStorage(pages: readonly Buffer[]): PackedSegment[] {
  const segments: PackedSegment[] = [];
  for (let i = 0; i < pages.length; i += 3) {
    const group = pages.slice(i, i + 3);
    const raw = Buffer.concat(group.flatMap((page) => [Buffer.alloc(8, 0xee), page]));
    const lz4 = i % 12 < 9;
    segments.push({
      codec: lz4 ? packedCodec.lz4 : packedCodec.none,
      rawBytes: raw.length,
      bytes: lz4 ? lz4Compress(raw).subarray(4) : raw,
      offsets: group.map((_, n) => 8 + n * (8 + blockSize)),
    });
  }
  return segments;
}
