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
  /** Share of writes, truncations and saves that fail with EIO. */
  readonly ioError: number;
  readonly newProposerMs: number;
  /** Share of new proposers that start while an older one lives. */
  readonly rivalProposer: number;
  /** Share of new proposers that are told an outdated configuration. */
  readonly staleConfiguration: number;
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
  /** A disk is lost, or its control file rots: the node must be replaced. */
  readonly diskLossMs: number;
  /** A byte of committed WAL rots. */
  readonly rotMs: number;
  readonly membershipMs: number;
  /** Share of the control plane's requests that are lost, and of answers. */
  readonly controlLoss: number;
  /** Share of the control plane's steps at which it dies for a while. */
  readonly controlCrash: number;
  /** Share of changes that are cancelled at some moment. */
  readonly controlCancel: number;
  /** Means between looks at what to archive; 0: no archive. */
  readonly archiveMs: number;
  /** Share of calls of the object store that fail: before they have an effect, and after. */
  readonly storeErrorBefore: number;
  readonly storeErrorAfter: number;
  readonly peerRecoveryMs: number;
  /** Clocks of computes run by up to this factor faster or slower. */
  readonly clockDrift: number;
  /** Messages go through the wire codec, in every fourth run or so. */
  readonly codec: boolean;
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
    durationMs: between(2000, 7000),
    latencyMs: between(0.2, 8),
    slowMessage: sometimes(0.6, 0.001, 0.05),
    recordMs: between(8, 60),
    syncMs: between(0.3, 20),
    syncError: sometimes(0.3, 0.0005, 0.01),
    ioError: sometimes(0.2, 0.0005, 0.005),
    newProposerMs: sometimes(0.9, 300, 2000),
    rivalProposer: between(0, 0.9),
    staleConfiguration: sometimes(0.5, 0.05, 0.3),
    nodeCrashMs: sometimes(0.7, 300, 3000),
    powerCut: between(0.3, 1),
    aimedCrash: {
      write: aim(0.0005, 0.01),
      flush: aim(0.0005, 0.01),
      truncate: aim(0.01, 0.3),
      save: aim(0.01, 0.2),
      send: aim(0.0005, 0.01),
      refuse: aim(0.001, 0.05),
      commit: aim(0.0005, 0.005),
      mark: aim(0.0005, 0.005),
    },
    breakMs: sometimes(0.7, 100, 2000),
    lateDelivery: sometimes(0.7, 0.1, 0.9),
    partitionMs: sometimes(0.6, 300, 3000),
    freezeMs: sometimes(0.4, 500, 4000),
    diskFullMs: sometimes(0.2, 500, 3000),
    diskLossMs: sometimes(0.25, 1000, 6000),
    rotMs: sometimes(0.15, 500, 4000),
    membershipMs: sometimes(0.5, 200, 2500),
    controlLoss: sometimes(0.6, 0.02, 0.4),
    controlCrash: sometimes(0.6, 0.02, 0.3),
    controlCancel: sometimes(0.3, 0.1, 0.6),
    archiveMs: sometimes(0.4, 30, 300),
    storeErrorBefore: sometimes(0.5, 0.02, 0.4),
    storeErrorAfter: sometimes(0.5, 0.02, 0.4),
    peerRecoveryMs: sometimes(0.4, 100, 1500),
    clockDrift: sometimes(0.3, 1, 3),
    codec: random.float() < 0.25,
  };
}
