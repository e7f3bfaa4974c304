/** Which faults a run has and how strong they are: drawn first from its seed (swarm testing). Times are means, 0 = never. */
import type {Random} from '#runtime/random.ts';
import type {AcceptorOutput} from '#safekeeper/acceptor.ts';

export interface Faults {
  readonly durationMs: number;
  readonly latencyMs: number;
  /** Share of messages that take 30 times as long. */
  readonly slowMessage: number;
  readonly recordMs: number;
  readonly syncMs: number;
  /** Share of fsyncs that fail. */
  readonly syncError: number;
  readonly newProposerMs: number;
  /** Share of new proposers that start while an older one lives. */
  readonly rivalProposer: number;
  readonly nodeCrashMs: number;
  /** Share of crashes that take the page cache with them; the others only kill the process. */
  readonly powerCut: number;
  /** Probability of a crash just before an output of this kind is carried out. */
  readonly aimedCrash: Readonly<Record<AcceptorOutput['kind'], number>>;
  readonly breakMs: number;
  readonly lateDelivery: number;
  readonly partitionMs: number;
  readonly freezeMs: number;
  readonly diskFullMs: number;
}

export function drawFaults(random: Random): Faults {
  const between = (low: number, high: number): number => low + random.float() * (high - low);
  const sometimes = (share: number, low: number, high: number): number => {
    const value = between(low, high);
    return random.float() < share ? value : 0;
  };
  const aimed = random.float() < 0.6;
  const aim = (low: number, high: number): number => (aimed ? sometimes(0.7, low, high) : 0);
  return {
    durationMs: between(4000, 12_000),
    latencyMs: between(0.2, 8),
    slowMessage: sometimes(0.6, 0.001, 0.05),
    recordMs: between(5, 60),
    syncMs: between(0.3, 20),
    syncError: sometimes(0.3, 0.0005, 0.01),
    newProposerMs: sometimes(0.9, 400, 3000),
    rivalProposer: between(0, 0.9),
    nodeCrashMs: sometimes(0.7, 400, 4000),
    powerCut: between(0.3, 1),
    aimedCrash: {
      write: aim(0.0005, 0.01),
      flush: aim(0.0005, 0.01),
      truncate: aim(0.01, 0.3),
      save: aim(0.01, 0.2),
      send: aim(0.0005, 0.01),
      refuse: aim(0.001, 0.05),
      commit: aim(0.0005, 0.005),
    },
    breakMs: sometimes(0.7, 100, 2000),
    lateDelivery: sometimes(0.7, 0.1, 0.9),
    partitionMs: sometimes(0.6, 300, 3000),
    freezeMs: sometimes(0.4, 500, 4000),
    diskFullMs: sometimes(0.2, 500, 3000),
  };
}
