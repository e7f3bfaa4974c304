/** Looks at the pages of a running Pagoda as a compute's agent does, and at who holds them. */
import assert from 'node:assert/strict';
import {createHash} from 'node:crypto';
import {readFileSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {Locations} from '#compute/locations.ts';
import {type StoppableSource, openPageSource} from '#compute/sharded-page-source.ts';
import type pg from 'pg';
import {type Lsn, parseLsn} from '#postgres/lsn.ts';
import {type RelTag, defaultTablespace} from '#postgres/relation.ts';
import {systemClock} from '#runtime/clock.ts';
import {requestJson} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {TokenIssuer} from '#wire/auth.ts';
import type {ComputeSpec, ShardLocation} from '#wire/compute-spec.ts';
import type {Pagoda} from '../pagoda.ts';
import {until} from '../until.ts';

/** Blocks that are read, and remembered, together. */
const runBlocks = 32;

/** What a relation's pages were at an LSN. */
export interface Known {
  readonly tag: RelTag;
  readonly blocks: number;
  readonly lsn: Lsn;
  /** Of each run of 32 blocks. */
  readonly digests: readonly string[];
}

export class PageProbe {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly projectId: string;
  /** A compute's. */
  readonly token: string;
  readonly #pagoda: Pagoda;
  readonly #issuer: TokenIssuer;
  #spec: ComputeSpec | undefined;
  #locations: Locations | undefined;

  private constructor(pagoda: Pagoda, issuer: TokenIssuer, token: string, branch: BranchPlace) {
    this.#pagoda = pagoda;
    this.#issuer = issuer;
    this.token = token;
    this.tenantId = branch.tenantId;
    this.timelineId = branch.timelineId;
    this.projectId = branch.projectId;
  }

  /** Of the installation's first project. */
  static async of(pagoda: Pagoda): Promise<PageProbe> {
    const issuer = await TokenIssuer.load(join(pagoda.dir, 'keys'), 'control', systemClock);
    const [first] = await branchPlaces(issuer, pagoda);
    const {tenantId: tenant, timelineId: timeline} = first!;
    const token = await issuer.sign({aud: ['pageserver', 'control'], scope: 'tenant', tenant, timeline});
    return new PageProbe(pagoda, issuer, token, first!);
  }

  // ---- pageservers

  /** Management HTTP of a pageserver. Throws when the status is not 2xx. */
  ask(node: number, method: string, path: string, body?: unknown): Promise<unknown> {
    return askAs(this.#issuer, 'pageserver', method, `http://127.0.0.1:${this.ports(node).httpPort}/v1${path}`, body);
  }

  ports(node: number): {readonly port: number; readonly httpPort: number} {
    const {internal} = this.#pagoda.status.ports;
    const port = node === 1 ? internal + 7 : internal + 6 + 2 * node;
    return {port, httpPort: port + 1};
  }

  role(node: number): string {
    return node === 1 ? 'pageserver' : `pageserver-${node}`;
  }

  pid(node: number): number {
    return this.#pagoda.pidOf(this.role(node));
  }

  /** The sum of a metric over its labels. `where`: a part of the labels. */
  async metric(node: number, name: string, where = ''): Promise<number> {
    const token = await this.#issuer.sign({aud: 'pageserver', scope: 'node'});
    const response = await fetch(`http://127.0.0.1:${this.ports(node).httpPort}/metrics`, {
      headers: {authorization: `Bearer ${token}`},
    });
    const lines = (await response.text()).split('\n').filter((line) => line.startsWith(name) && line.includes(where));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
  }

  /** Starts a pageserver anew, and what usually rests for minutes happens there all the time: layers, compaction, GC, sweeps. */
  async makeRestless(node: number, layerAgeMs = 500): Promise<void> {
    const path = join(this.#pagoda.dir, 'config', `${this.role(node)}.json`);
    const limits = {layerBytes: 256 * 1024, layerAgeMs, gcPeriodMs: 200, compaction: {l0Threshold: 2}};
    writeFileSync(path, JSON.stringify({...(JSON.parse(readFileSync(path, 'utf8')) as object), limits}));
    const before = this.pid(node);
    process.kill(before, 'SIGKILL');
    await until(
      'the pageserver is back',
      async () => this.pid(node) !== before && Array.isArray(await this.held(node)),
    );
    // Failed over meanwhile, or not.
    await until('every shard is attached', async () => {
      const shards = await this.shards();
      const held = await Promise.all(shards.map((shard) => this.hasMode(shard.node, shard.shardId, 'attached')));
      return held.every(Boolean);
    });
  }

  async held(node: number): Promise<{id: string; mode: string}[]> {
    return ((await this.ask(node, 'GET', '/held')) as {tenants: {id: string; mode: string}[]}).tenants;
  }

  async hasMode(node: number, shardId: string, mode: 'attached' | 'secondary'): Promise<boolean> {
    return (await this.held(node)).some((shard) => shard.id === shardId && shard.mode === mode);
  }

  /** Every shard of the tenant in order: its id, and the number of the pageserver that holds it. */
  async shards(): Promise<{shardId: string; node: number}[]> {
    const found = await this.#shardLocations();
    return found.map(({shardId, port}) => {
      const node = [1, 2, 3, 4, 5, 6].find((n) => this.ports(n).port === port);
      assert.ok(node !== undefined, `no pageserver has port ${port}`);
      return {shardId, node};
    });
  }

  // ---- pages

  /** An agent's own way to its pages. */
  async source(lsn: Lsn): Promise<StoppableSource> {
    const {tenantId, timelineId, token} = this;
    this.#spec ??= {
      tenantId,
      timelineId,
      branchId: 'test',
      locationsUrl: this.#locationsUrl(),
      shards: await this.#shardLocations(),
    } as unknown as ComputeSpec;
    const shared = {spec: this.#spec, token: () => token, clock: systemClock, log: silentLog};
    this.#locations ??= new Locations(shared);
    return openPageSource({...shared, locations: this.#locations, lsn});
  }

  /** A table of the session's database as it is now. */
  async remember(session: pg.Client, table: string): Promise<Known> {
    const [row] = (
      await session.query<{dbNode: number; relNode: number; blocks: number; lsn: string}>(
        `select oid::int as "dbNode", pg_relation_filenode($1)::int as "relNode", (pg_relation_size($1) / 8192)::int as blocks,
           pg_current_wal_flush_lsn()::text as lsn from pg_database where datname = current_database()`,
        [table],
      )
    ).rows;
    const {dbNode, relNode, blocks} = row!;
    const at = {tag: {spcNode: defaultTablespace, dbNode, relNode, fork: 0}, blocks, lsn: parseLsn(row!.lsn)} as const;
    return {...at, digests: await this.#digests(at)};
  }

  /** The pages are still what they were. */
  async check(...known: readonly Known[]): Promise<void> {
    for (const at of known) assert.deepEqual(await this.#digests(at), at.digests);
  }

  async #digests(at: Omit<Known, 'digests'>): Promise<string[]> {
    const source = await this.source(at.lsn);
    const digests: string[] = [];
    const deadline = performance.now() + 240_000;
    while (digests.length * runBlocks < at.blocks)
      try {
        digests.push(await digest(source, at, digests.length * runBlocks));
      } catch (error) {
        // On a busy machine ingest may be minutes behind.
        if ((error as {code?: string}).code !== 'lsn-timeout' || performance.now() > deadline) throw error;
      }
    source.stop();
    return digests;
  }

  /** Reads and checks pages, and writes, until `work` is over; answers the longest gap between two answers of each. */
  async underLoad(
    known: Known,
    write: () => Promise<unknown>,
    work: () => Promise<unknown>,
  ): Promise<{readGapMs: number; writeGapMs: number}> {
    let over = false;
    const source = await this.source(known.lsn);
    const loop = async (step: () => Promise<unknown>): Promise<number> => {
      let gap = 0;
      for (let last = performance.now(); !over;) {
        await step();
        const now = performance.now();
        gap = Math.max(gap, now - last);
        last = now;
        await sleep(2);
      }
      return Math.round(gap);
    };
    const reads = loop(async () => {
      const run = Math.floor(Math.random() * known.digests.length);
      assert.equal(await digest(source, known, run * runBlocks), known.digests[run], `blocks from ${run * runBlocks}`);
    });
    const writes = loop(write);
    try {
      await sleep(300);
      await work();
      await sleep(500);
    } finally {
      over = true;
      await Promise.allSettled([reads, writes]);
      source.stop();
    }
    return {readGapMs: await reads, writeGapMs: await writes};
  }

  #locationsUrl(): string {
    return `${controlUrl(this.#pagoda)}/tenants/${this.tenantId}/locations`;
  }

  async #shardLocations(): Promise<ShardLocation[]> {
    const answer = await askAs(this.#issuer, 'control', 'GET', this.#locationsUrl());
    return (answer as {shards: ShardLocation[]}).shards;
  }
}

async function digest(
  source: StoppableSource,
  {tag, blocks}: Pick<Known, 'tag' | 'blocks'>,
  block: number,
): Promise<string> {
  const run = await source.getPages(tag, block, Math.min(runBlocks, blocks - block));
  const text = createHash('sha256').update(run.bytes).digest('hex');
  run.release();
  return text;
}

function controlUrl(pagoda: Pagoda): string {
  return `http://127.0.0.1:${pagoda.status.ports.internal + 9}/internal/v1`;
}

interface BranchPlace {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly projectId: string;
}

async function branchPlaces(issuer: TokenIssuer, pagoda: Pagoda): Promise<BranchPlace[]> {
  const answer = await askAs(issuer, 'control', 'GET', `${controlUrl(pagoda)}/branch_places`);
  return (answer as {branches: BranchPlace[]}).branches;
}

async function askAs(
  issuer: TokenIssuer,
  aud: 'control' | 'pageserver',
  method: string,
  url: string,
  body?: unknown,
): Promise<unknown> {
  const token = await issuer.sign({aud, scope: 'node'});
  const {status, json} = await requestJson({
    method,
    url,
    token,
    ...(body === undefined ? {} : {body}),
    timeoutMs: 30_000,
  });
  assert.ok(status < 300, `${method} ${url}: ${status} ${JSON.stringify(json)}`);
  return json;
}
