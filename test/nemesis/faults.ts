/** What the nemesis does: the kinds of faults, and a schedule of them that follows from the seed alone. */
import {SeededRandom} from '#runtime/random.ts';
import {setTimeout as sleep} from 'node:timers/promises';
import pg from 'pg';
import {signalAll} from '../processes.ts';
import {type Fault, faults as storeFaults} from '../objectstore/fault-proxy.ts';
import type {Cell} from './cell.ts';
import {replaceSafekeeper} from './replace-safekeeper.ts';
import type {Ledger} from './workloads/ledger.ts';

/** Kinds are grouped for the counts that a valid run must reach. */
export const faultClasses = ['safekeeper', 'compute', 'pageserver', 'network', 'object store'] as const;
export type FaultClass = (typeof faultClasses)[number] | 'other';

export type Need = 'isolated' | 's3';

export interface FaultKind {
  readonly name: string;
  readonly class: FaultClass;
  /** How long it lasts, in milliseconds; a kill has no length of its own. */
  readonly hold: readonly [number, number];
  /** What the cell must have: namespaces and file systems; S3 with a fault proxy. */
  readonly needs?: Need;
  /** A commit must not wait longer than this for it (the goals of the issue); undefined = as long as it lasts. */
  readonly gapMsMax?: number;
  /** Never together with another, which might hold back what it waits for. */
  readonly alone?: boolean;
  /** What kind of its name this one is, for the log. */
  readonly detail?: string;
  /** Begins it on a target drawn from `random`; answers what ends it. */
  readonly inject: (
    world: World,
    random: SeededRandom,
  ) => Promise<() => void | Promise<void>> | (() => void | Promise<void>);
}

export interface World {
  readonly cell: Cell;
  readonly endpointId: string;
  readonly ledger: Ledger;
  readonly problems: string[];
  /** Of the branch, by name; the others are faulted when they have become members. */
  safekeepers: readonly string[];
  /** The one that is no member. */
  spare: string;
  /** A rival that is deposed before it serves proves nothing. */
  rivalsServed: number;
}

const safekeeperGapMs = 1000;
const computeGapMs = 5000;

const oneOf = <T>(random: SeededRandom, list: readonly T[]): T => list[random.uint32() % list.length]!;
const safekeeper = (random: SeededRandom, {safekeepers}: World): string => oneOf(random, safekeepers);
const nothing = (): void => {};

type Target = (random: SeededRandom, world: World) => string;

function kill(name: string, of: FaultClass, role: Target, gapMsMax?: number): FaultKind {
  return {
    name: `${name} killed`,
    class: of,
    hold: [0, 500],
    ...(gapMsMax === undefined ? {} : {gapMsMax}),
    inject(world, random) {
      world.cell.kill(role(random, world));
      return nothing;
    },
  };
}

function pause(name: string, of: FaultClass, role: Target, gapMsMax?: number): FaultKind {
  return {
    name: `${name} paused`,
    class: of,
    hold: [500, 6000],
    ...(gapMsMax === undefined ? {} : {gapMsMax}),
    inject(world, random) {
      const {cell} = world;
      const target = role(random, world);
      cell.signal(target, 'SIGSTOP');
      return () => cell.signal(target, 'SIGCONT');
    },
  };
}

function computeKilled(name: string, pick: (c: ReturnType<Cell['compute']>) => (number | undefined)[]): FaultKind {
  return {
    name,
    class: 'compute',
    hold: [0, 500],
    gapMsMax: computeGapMs,
    inject({cell, endpointId}) {
      signalAll(pick(cell.compute(endpointId)), 'SIGKILL');
      return nothing;
    },
  };
}

const link = (
  name: string,
  which: (random: SeededRandom, world: World) => readonly string[],
  fault: Parameters<import('./fault-link.ts').FaultLink['set']>[0],
  options: {readonly gapMsMax?: number; readonly hold?: readonly [number, number]; readonly reset?: boolean} = {},
): FaultKind => ({
  name,
  class: 'network',
  hold: options.hold ?? [500, 5000],
  ...(options.gapMsMax === undefined ? {} : {gapMsMax: options.gapMsMax}),
  inject(world, random) {
    const links = which(random, world).map((l) => world.cell.links.get(l)!);
    for (const l of links) l.set(fault);
    return () => {
      for (const l of links)
        if (options.reset) l.healThenReset();
        else l.heal();
    };
  },
});

/**
 * TCP tries again after twice the time of its last attempt: after the heal the node stays mute for as long as it was cut off, at most.
 * That is waited for, or it would be mute together with the victim of the next fault; or its connections are reset.
 */
function partition(cell: Cell, node: string, how: 'both' | 'sends-lost', random: SeededRandom): () => Promise<void> {
  const fromMs = performance.now();
  const isReset = random.uint32() % 2 === 0;
  cell.isolation.partition(node, how);
  return async () => {
    cell.isolation.heal(node);
    if (!isReset) await sleep(performance.now() - fromMs);
    else
      for (const name of node === 'pageserver' ? storageLinks() : [node, `${node}-http`]) cell.links.get(name)!.reset();
  };
}

/** One in `oneIn` requests meets one of the kinds. Commits need no object store. */
const objectStore = (name: string, oneIn: number, kinds: readonly Fault[]): FaultKind => ({
  name,
  class: 'object store',
  hold: [1000, 6000],
  needs: 's3',
  gapMsMax: safekeeperGapMs,
  inject({cell}, random) {
    cell.objectStore!.random(random.uint32(), oneIn, kinds);
    return () => cell.objectStore!.heal();
  },
});

const oneWalLink = (random: SeededRandom, world: World): string[] => [safekeeper(random, world)];
const allWalLinks = (_: SeededRandom, {safekeepers}: World): readonly string[] => safekeepers;
const storageLinks = (): string[] => ['pages', 'pageserver-http'];

export const faultKinds: readonly FaultKind[] = [
  kill('safekeeper', 'safekeeper', safekeeper, safekeeperGapMs),
  pause('safekeeper', 'safekeeper', safekeeper, safekeeperGapMs),
  {
    name: 'two safekeepers killed',
    class: 'safekeeper',
    hold: [0, 500],
    inject(world, random) {
      const {cell, safekeepers} = world;
      const spared = safekeeper(random, world);
      for (const name of safekeepers) if (name !== spared) cell.kill(name);
      return nothing;
    },
  },
  {
    name: 'safekeeper down for long',
    class: 'safekeeper',
    hold: [3000, 8000],
    gapMsMax: safekeeperGapMs,
    async inject(world, random) {
      const {cell} = world;
      const name = safekeeper(random, world);
      await cell.hold(name);
      return () => cell.release(name);
    },
  },
  {
    name: 'safekeeper cut off',
    class: 'network',
    hold: [1000, 8000],
    needs: 'isolated',
    gapMsMax: safekeeperGapMs,
    inject(world, random) {
      return partition(world.cell, safekeeper(random, world), 'both', random);
    },
  },
  {
    name: 'safekeeper hears but is not heard',
    class: 'network',
    hold: [1000, 8000],
    needs: 'isolated',
    gapMsMax: safekeeperGapMs,
    inject(world, random) {
      return partition(world.cell, safekeeper(random, world), 'sends-lost', random);
    },
  },
  {
    name: 'safekeeper disk full',
    class: 'safekeeper',
    hold: [1000, 5000],
    needs: 'isolated',
    gapMsMax: safekeeperGapMs,
    async inject(world, random) {
      const {cell} = world;
      const name = safekeeper(random, world);
      await cell.isolation.fillDisk(name);
      return () => cell.isolation.emptyDisk(name);
    },
  },
  link('link to a safekeeper slow', oneWalLink, {delayMs: 100, jitterMs: 200}, {gapMsMax: safekeeperGapMs}),
  link('links to all safekeepers slow', allWalLinks, {delayMs: 20, jitterMs: 60}),
  link('answers of a safekeeper lost', oneWalLink, {hold: 'down'}, {gapMsMax: safekeeperGapMs, reset: true}),
  link('words to a safekeeper lost', oneWalLink, {hold: 'up'}, {gapMsMax: safekeeperGapMs, reset: true}),
  link(
    'proposer cut off from a safekeeper',
    oneWalLink,
    {hold: 'both', service: 'proposer'},
    {gapMsMax: safekeeperGapMs},
  ),
  link('bits flipped to and from a safekeeper', oneWalLink, {corruptOneIn: 20}, {gapMsMax: safekeeperGapMs}),
  link('bits flipped to and from all safekeepers', allWalLinks, {corruptOneIn: 40}, {hold: [500, 3000]}),
  link('answers of all safekeepers lost', allWalLinks, {hold: 'down'}, {hold: [300, 1500], reset: true}),
  {
    name: 'connections to safekeepers reset',
    class: 'network',
    hold: [0, 300],
    inject({cell, safekeepers}) {
      for (const name of safekeepers) cell.links.get(name)!.reset();
      return nothing;
    },
  },
  {
    name: 'safekeeper replaced',
    class: 'safekeeper',
    hold: [0, 500],
    gapMsMax: safekeeperGapMs,
    inject: (world, random) => () => replaceSafekeeper(world, safekeeper(random, world)),
  },
  {
    name: 'safekeeper dead and replaced',
    class: 'safekeeper',
    hold: [500, 3000],
    gapMsMax: safekeeperGapMs,
    async inject(world, random) {
      const name = safekeeper(random, world);
      await world.cell.hold(name);
      return async () => {
        await replaceSafekeeper(world, name);
        // It does not know what has been decided without it.
        await world.cell.release(name);
      };
    },
  },
  computeKilled('compute killed', (c) => [c.agent, c.proposer, c.postgres, ...c.backends]),
  computeKilled('postgres killed', (c) => [c.postgres]),
  computeKilled('proposer killed', (c) => [c.proposer]),
  computeKilled('compute agent killed', (c) => [c.agent]),
  {
    name: 'compute paused',
    class: 'compute',
    hold: [500, 6000],
    inject({cell, endpointId}) {
      const c = cell.compute(endpointId);
      const pids = [c.agent, c.proposer, c.postgres, ...c.backends];
      signalAll(pids, 'SIGSTOP');
      return () => signalAll(pids, 'SIGCONT');
    },
  },
  {
    name: 'proposer paused',
    class: 'compute',
    hold: [500, 6000],
    inject({cell, endpointId}) {
      const {proposer} = cell.compute(endpointId);
      signalAll([proposer], 'SIGSTOP');
      return () => signalAll([proposer], 'SIGCONT');
    },
  },
  {
    name: 'compute killed, bits flipped on its way to storage',
    class: 'compute',
    hold: [1000, 3000],
    inject({cell, endpointId}) {
      const links = storageLinks().map((l) => cell.links.get(l)!);
      for (const l of links) l.set({corruptOneIn: 10});
      const c = cell.compute(endpointId);
      signalAll([c.agent, c.proposer, c.postgres, ...c.backends], 'SIGKILL');
      return () => {
        for (const l of links) l.heal();
      };
    },
  },
  {
    name: 'compute killed while a safekeeper is cut off from it',
    class: 'compute',
    hold: [3000, 8000],
    gapMsMax: computeGapMs,
    inject(world, random) {
      const {cell, endpointId} = world;
      const l = cell.links.get(safekeeper(random, world))!;
      l.set({hold: 'both'});
      const c = cell.compute(endpointId);
      signalAll([c.agent, c.proposer, c.postgres, ...c.backends], 'SIGKILL');
      return () => l.heal();
    },
  },
  {
    name: 'a rival compute of the same branch',
    class: 'compute',
    hold: [1000, 4000],
    alone: true,
    inject: rivalCompute,
  },
  kill('pageserver', 'pageserver', () => 'pageserver'),
  pause('pageserver', 'pageserver', () => 'pageserver'),
  {
    name: 'pageserver and compute killed',
    class: 'pageserver',
    hold: [0, 500],
    inject({cell, endpointId}) {
      cell.kill('pageserver');
      const c = cell.compute(endpointId);
      signalAll([c.agent, c.proposer, c.postgres, ...c.backends], 'SIGKILL');
      return nothing;
    },
  },
  {
    name: 'pageserver cut off',
    class: 'network',
    hold: [1000, 6000],
    needs: 'isolated',
    inject: ({cell}, random) => partition(cell, 'pageserver', 'both', random),
  },
  link('bits flipped to and from storage', storageLinks, {corruptOneIn: 20}),
  link('answers of storage lost', storageLinks, {hold: 'down'}, {reset: true}),
  objectStore('object store answers 503', 1, ['503']),
  objectStore('object store cannot be reached', 1, ['refuse']),
  objectStore('object store does its work and loses answers', 1, ['lost', '500-done']),
  objectStore('object store slow', 1, ['slow']),
  objectStore('object store errs in every way', 3, storeFaults),
  {
    name: 'pageserver and compute killed while the object store errs',
    class: 'object store',
    hold: [2000, 6000],
    needs: 's3',
    inject({cell, endpointId}, random) {
      cell.objectStore!.random(random.uint32(), 3, storeFaults);
      cell.kill('pageserver');
      const c = cell.compute(endpointId);
      signalAll([c.agent, c.proposer, c.postgres, ...c.backends], 'SIGKILL');
      return () => cell.objectStore!.heal();
    },
  },
  kill('control plane', 'other', () => 'control'),
  pause('control plane', 'other', () => 'control'),
  kill('broker', 'other', () => 'broker'),
  pause('broker', 'other', () => 'broker'),
  link('bits flipped at broker and control plane', () => ['broker', 'control'], {corruptOneIn: 5}),
  kill('proxy', 'other', () => 'proxy'),
  pause('proxy', 'other', () => 'proxy'),
  {
    name: 'everything killed',
    class: 'other',
    hold: [0, 500],
    inject({cell, endpointId}) {
      const c = cell.compute(endpointId);
      for (const name of cell.roleNames) cell.kill(name);
      signalAll([c.agent, c.proposer, c.postgres, ...c.backends], 'SIGKILL');
      return nothing;
    },
  },
];

const fencedMsMax = 10_000;

/**
 * Somebody starts a second compute past the control plane. The first must end within ten seconds and never acknowledge again;
 * what the second acknowledges until it is deposed in its turn (by the clients' next connections) must stay.
 */
async function rivalCompute(world: World): Promise<() => void> {
  const {cell, endpointId, ledger, problems} = world;
  const first = cell.compute(endpointId).postgres;
  let rival;
  try {
    rival = await cell.rival(endpointId);
  } catch {
    return nothing; // deposed before it served: the clients' computes were faster
  }
  world.rivalsServed++;
  const client = new pg.Client({host: rival.host, port: rival.port, user: 'pagoda_admin', database: 'neondb'});
  client.on('error', () => {});
  const writing = (async () => {
    try {
      await client.connect();
      for (;;) await ledger.turn(client);
    } catch {
      // deposed
    }
  })();
  const deadline = performance.now() + fencedMsMax;
  while (cell.compute(endpointId).postgres === first && first !== undefined && performance.now() < deadline)
    await sleep(50);
  if (first !== undefined && cell.compute(endpointId).postgres === first)
    problems.push(`a deposed Postgres (pid ${first}) still runs after ${fencedMsMax / 1000} s`);
  return () => {
    rival.stop();
    (client as unknown as {connection: {stream: {destroy(): void}}}).connection.stream.destroy();
    void writing;
  };
}

export interface PlannedFault {
  readonly kind: FaultKind;
  readonly holdMs: number;
  /** After it is healed and commits have come back. */
  readonly restMs: number;
  /** Draws its target. */
  readonly seed: number;
}

/** Both at the same time. What each of them may cost alone says nothing about the two. */
function together(a: FaultKind, b: FaultKind): FaultKind {
  return {
    name: 'two at once',
    class: a.class,
    hold: [Math.max(a.hold[0], b.hold[0]), Math.max(a.hold[1], b.hold[1])],
    detail: `${a.name}, and ${b.name}`,
    async inject(world, random) {
      const heals = [await a.inject(world, random), await b.inject(world, random)];
      // Side by side: a safekeeper cannot be replaced while another one that it takes is still cut off.
      return async () => {
        await Promise.all(heals.map(async (heal) => heal()));
      };
    },
  };
}

/**
 * Endless: rounds in which each kind comes once, in an order of the seed; kinds of the classes that must be seen come early.
 * From the second round on every fourth fault is two at once.
 */
export function* schedule(seed: number, has: ReadonlySet<Need>): Generator<PlannedFault> {
  const random = new SeededRandom(seed);
  const kinds = faultKinds.filter((k) => k.needs === undefined || has.has(k.needs));
  for (let round = 0; ; round++) {
    const order = kinds
      .map((kind) => ({kind, at: random.float()}))
      .toSorted((a, b) => a.at - b.at)
      .map(({kind}) => kind);
    if (round === 0) {
      const first = faultClasses.flatMap((c) => order.find((k) => k.class === c) ?? []);
      order.splice(0, order.length, ...first, ...order.filter((k) => !first.includes(k)));
    }
    for (const single of order) {
      const other = order[random.uint32() % order.length]!;
      const double = round > 0 && random.uint32() % 4 === 0 && other !== single && !single.alone && !other.alone;
      const kind = double ? together(single, other) : single;
      const [least, most] = kind.hold;
      yield {
        kind,
        holdMs: Math.round(least + random.float() * (most - least)),
        restMs: Math.round(500 + random.float() * 1500),
        seed: random.uint32(),
      };
    }
  }
}
