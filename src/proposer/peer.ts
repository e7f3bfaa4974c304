/** What a proposer knows of one safekeeper. */
import {type Lsn, invalidLsn} from '#postgres/lsn.ts';
import type {Membership, TermHistory, WalFeedback} from '#wire/safekeeper.ts';

export interface Vote {
  readonly flushLsn: Lsn;
  readonly commitLsn: Lsn;
  readonly history: TermHistory;
}

export interface Peer {
  readonly nodeId: number;
  /** ahead: it has a newer configuration (`newer`) and takes nothing of ours. */
  phase: 'offline' | 'greeting' | 'greeted' | 'electing' | 'streaming' | 'ahead';
  newer: Membership | undefined;
  vote: Vote | undefined;
  /** Durable there in our term; stays when the connection breaks. */
  flushLsn: Lsn;
  /** Durable there, maybe inside a record: flow control only. */
  syncedLsn: Lsn;
  commitLsn: Lsn;
  /** The next byte to send. */
  nextLsn: Lsn;
  commitSentLsn: Lsn;
  recovery: 'none' | 'running' | 'paused';
  /** Donors asked for it in this round: what the best one sends may be damaged, which only the safekeeper notices. */
  askedDonors: readonly number[];
  feedback: WalFeedback;
}

export interface PeerStatus {
  readonly nodeId: number;
  readonly phase: string;
  readonly flushLsn: Lsn;
  readonly commitLsn: Lsn;
  readonly feedback: WalFeedback;
}

const noFeedback: WalFeedback = {
  lastReceivedLsn: invalidLsn,
  diskConsistentLsn: invalidLsn,
  remoteConsistentLsn: invalidLsn,
};

export function newPeer(nodeId: number): Peer {
  return {
    nodeId,
    phase: 'offline',
    newer: undefined,
    vote: undefined,
    flushLsn: invalidLsn,
    syncedLsn: invalidLsn,
    commitLsn: invalidLsn,
    nextLsn: invalidLsn,
    commitSentLsn: invalidLsn,
    recovery: 'none',
    askedDonors: [],
    feedback: noFeedback,
  };
}
