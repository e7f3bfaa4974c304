/** What goes into a proposer and what comes out of it (proposer.ts). */
import type {Lsn} from '#postgres/lsn.ts';
import type {Peer} from '#proposer/peer.ts';
import type {WalStreamsSnapshot} from '#proposer/wal-streams.ts';
import type {AcceptorMessage, Membership, ProposerMessage, TermHistory} from '#wire/safekeeper.ts';

export type ProposerInput =
  | {readonly kind: 'connected'; readonly peer: number}
  | {readonly kind: 'disconnected'; readonly peer: number}
  | {readonly kind: 'message'; readonly peer: number; readonly message: AcceptorMessage}
  /** The compute's WAL, without gaps from termStartLsn on. The bytes must not change afterwards. */
  | {readonly kind: 'wal'; readonly lsn: Lsn; readonly bytes: Buffer}
  /** What a `recover` output asked for, in order. */
  | {readonly kind: 'recovered'; readonly peer: number; readonly lsn: Lsn; readonly bytes: Buffer}
  /** The donor failed, or has no more for now. */
  | {readonly kind: 'recovery-ended'; readonly peer: number}
  /** Time to tell safekeepers a commit LSN that no append has carried. */
  | {readonly kind: 'commit-due'}
  /** A few times a second before the election, then once: asks for signs of life. `random` in [0, 1) spreads campaigns of rivals. */
  | {readonly kind: 'tick'; readonly nowMs: number; readonly random: number};

export type ProposerOutput =
  | {readonly kind: 'send'; readonly peer: number; readonly message: ProposerMessage}
  /** Close the connection; connect again after a while. */
  | {readonly kind: 'close'; readonly peer: number; readonly reason: string}
  | {readonly kind: 'elected'; readonly term: number; readonly termStartLsn: Lsn}
  /** Once: everything up to here is committed, the compute starts exactly here. */
  | {readonly kind: 'synced'; readonly lsn: Lsn}
  /** commitLsn has advanced: acknowledge it to the compute. */
  | {readonly kind: 'committed'; readonly lsn: Lsn}
  /** Read WAL [startLsn, …) at safekeeper `donor` under our term and step it in as `recovered`, until `stop-recovery`. */
  | {
      readonly kind: 'recover';
      readonly peer: number;
      readonly donor: number;
      readonly startLsn: Lsn;
      readonly term: number;
    }
  | {readonly kind: 'pause-recovery'; readonly peer: number}
  | {readonly kind: 'resume-recovery'; readonly peer: number}
  | {readonly kind: 'stop-recovery'; readonly peer: number}
  | {readonly kind: 'pause-source'}
  | {readonly kind: 'resume-source'}
  /** From now on these are the safekeepers: connect to those that are new, let go of those that are gone. */
  | {readonly kind: 'membership'; readonly membership: Membership}
  /** A proposer of a higher term exists: this one has ended. */
  | {readonly kind: 'fenced'; readonly term: number; readonly peer: number};

/** Seeded bugs for the simulator's mutation check; production never passes any. */
export type ProposerMutation =
  | 'quorum-of-one'
  | 'donor-by-lsn'
  | 'donor-by-term'
  | 'commit-old-terms'
  | 'reuse-term'
  | 'ignore-higher-term'
  | 'commit-partial-record'
  | 'forget-donor-history'
  | 'joint-old-only'
  | 'joint-new-only'
  | 'keep-acks-across-generations'
  | 'count-any-generation'
  | 'votes-of-any-term'
  | 'start-at-donors-commit'
  | 'never-starts-over'
  | 'never-left-alone'
  | 'always-best-donor'
  | 'offline-counts';

export interface ProposerOptions {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly pgVersion: number;
  readonly systemId: string;
  readonly membership: Membership;
  readonly mutations?: ReadonlySet<ProposerMutation>;
}

/** All that decides what a proposer does next, for the model check. The parts are never changed in place. */
export interface ProposerSnapshot extends WalStreamsSnapshot {
  readonly membership: Membership;
  readonly phase: 'greeting' | 'voting' | 'elected' | 'fenced';
  readonly term: number;
  readonly highestTermSeen: number;
  readonly campaignAgain: boolean;
  readonly campaignAtMs: number | undefined;
  readonly history: TermHistory;
  readonly termStartLsn: Lsn;
  readonly commitLsn: Lsn;
  readonly progress: number;
  readonly progressAtMs: number | undefined;
  readonly aloneSinceMs: number | undefined;
  readonly peers: readonly Readonly<Peer>[];
}
