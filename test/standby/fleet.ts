/**
 * Pageservers (the class that runs in production) over one object store. In place of the control plane a table says who holds a
 * shard, under which generation. A shard moves as a migration moves it, or is taken from a node that is told nothing.
 */
import {Pageserver} from '#pageserver/pageserver.ts';
import type {PageserverContext} from '#pageserver/timeline/state.ts';
import type {Tenant} from '#pageserver/timeline/tenant.ts';

/** What a pageserver runs with; anew for each start of it. */
export interface NodeParts {
  readonly context: PageserverContext;
  /** The context's store keeps parts of objects on a local disk. */
  readonly hasLocalCache: boolean;
}

interface Row {
  readonly node: number;
  readonly generation: number;
}

/** A migration leaves its source readable for this long at most. */
const overlapMsMax = 300;
/** Whether a generation is the latest is answered within. */
const answerMsMax = 200;

export class Fleet {
  readonly #make: (node: number) => NodeParts;
  readonly #contexts: PageserverContext[] = [];
  readonly #nodes: Pageserver[];
  readonly #rows = new Map<string, Row>();
  readonly #generationMin: number;
  migrations = 0;
  failovers = 0;
  /** A pageserver wanted to delete, or to say what is durable, and did not hold the shard any more. */
  refusals = 0;
  restarts = 0;
  /** Called in the turn in which a tenant is loaded. */
  onLoaded: (tenant: Tenant) => void = () => {};

  /** `make` is asked at every start of a node; generations begin above `generationMin`. */
  constructor(size: number, make: (node: number) => NodeParts, generationMin: number) {
    this.#make = make;
    this.#generationMin = generationMin;
    this.#nodes = Array.from({length: size}, (_, node) => this.#start(node));
  }

  get size(): number {
    return this.#nodes.length;
  }

  node(number: number): Pageserver {
    return this.#nodes[number]!;
  }

  /** Where the shard is by the table. */
  row(shardId: string): Row {
    return this.#rows.get(shardId) ?? {node: 0, generation: this.#generationMin};
  }

  /** Throws TimelineError 'not-attached' while it is on its way. */
  tenant(shardId: string): Tenant {
    return this.node(this.row(shardId).node).tenant(shardId);
  }

  pageserver(shardId: string): Pageserver {
    return this.node(this.row(shardId).node);
  }

  /** Attaches the shard anew from the object store. Who held it is told nothing, and what that has not saved is left behind. */
  async attach(shardId: string, to = this.row(shardId).node): Promise<Tenant> {
    return this.#load(shardId, this.#next(shardId, to), false);
  }

  /** The next node takes the shard over from one that does not answer, but lives. */
  async failOver(shardId: string): Promise<void> {
    await this.attach(shardId, (this.row(shardId).node + 1) % this.size);
    this.failovers++;
  }

  /** To the next node, in the steps of control/operations/migrate-plan.ts. */
  async migrate(shardId: string): Promise<void> {
    const {node: from} = this.row(shardId);
    const to = (from + 1) % this.size;
    const {clock, random} = this.#contexts[to]!;
    const secondary = await this.node(to).keepReady(shardId);
    await secondary.round();
    await this.node(from).save(shardId);
    const row = this.#next(shardId, to);
    await this.#load(shardId, row, true);
    await clock.sleep(random.uint32() % overlapMsMax);
    await this.node(from).keepReady(shardId);
    await this.node(to).attach(shardId, row.generation);
    this.migrations++;
  }

  /** Every node stops, and another begins in its place that knows nothing; then the shards are attached where they were. */
  async restart(shardIds: readonly string[]): Promise<void> {
    for (const [node, pageserver] of this.#nodes.entries()) {
      await pageserver.stop(60_000);
      this.#nodes[node] = this.#start(node);
      this.restarts++;
    }
    await Promise.all(shardIds.map((id) => this.attach(id)));
  }

  async stop(): Promise<void> {
    await Promise.all(this.#nodes.map((node) => node.stop(60_000)));
  }

  #start(node: number): Pageserver {
    const {context, hasLocalCache} = this.#make(node);
    const {clock, random, log} = context;
    this.#contexts[node] = context;
    const validator = {
      // As true as an answer that was on its way for a while.
      validate: async (shardId: string, generation: number) => {
        const isLatest = this.#rows.get(shardId)?.generation === generation;
        if (this.size > 1) await clock.sleep(random.uint32() % answerMsMax);
        if (!isLatest) this.refusals++;
        return isLatest;
      },
    };
    return new Pageserver({
      context,
      validator,
      clock,
      log,
      hasLocalCache,
      safekeeperToken: () => Promise.reject(new Error('WAL comes from files here')),
    });
  }

  #next(shardId: string, node: number): Row {
    const row = {node, generation: this.row(shardId).generation + 1};
    this.#rows.set(shardId, row);
    return row;
  }

  async #load(shardId: string, {node, generation}: Row, holds: boolean): Promise<Tenant> {
    const tenant = await this.node(node).attach(shardId, generation, holds);
    this.onLoaded(tenant);
    return tenant;
  }
}
