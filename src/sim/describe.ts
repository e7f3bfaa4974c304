/** Messages as text for the trace, and as a number for the hash. */
import {formatLsn} from '#postgres/lsn.ts';
import type {AcceptorMessage, Membership, ProposerMessage} from '#wire/safekeeper.ts';

export function describe(m: ProposerMessage | AcceptorMessage): string {
  switch (m.kind) {
    case 'append':
      return `append g${m.generation} t${m.term} ${formatLsn(m.beginLsn)}+${m.bytes.length} commit ${formatLsn(m.commitLsn)}`;
    case 'append-response':
      return `append-response g${m.generation} t${m.term} flush ${formatLsn(m.flushLsn)} commit ${formatLsn(m.commitLsn)}`;
    case 'greeting':
      return `greeting g${m.generation}`;
    case 'greeting-response':
      return `greeting-response t${m.term} ${describeMembership(m.membership)}`;
    case 'vote-request':
      return `vote-request g${m.generation} t${m.term}`;
    case 'vote-response':
      return `vote-response g${m.generation} t${m.term} ${m.granted ? 'granted' : 'refused'} flush ${formatLsn(m.flushLsn)} last term ${m.history.at(-1)?.term}`;
    case 'elected':
      return `elected g${m.generation} t${m.term} ${m.history.map((e) => `${e.term}@${formatLsn(e.lsn)}`).join(' ')}`;
    case 'elected-response':
      return `elected-response g${m.generation} t${m.term} start ${formatLsn(m.startLsn)}`;
  }
}

export function describeMembership({generation, members, newMembers}: Membership): string {
  const ids = (list: Membership['members']): string => list.map((m) => m.nodeId).join(',');
  return `g${generation} {${ids(members)}}${newMembers.length > 0 ? `+{${ids(newMembers)}}` : ''}`;
}

export function fingerprint(m: ProposerMessage | AcceptorMessage): number {
  switch (m.kind) {
    case 'append':
      return (m.beginLsn + m.bytes.length * 31 + m.commitLsn * 7 + m.term * 65_537) | 0;
    case 'append-response':
      return (m.flushLsn * 3 + m.commitLsn * 5 + m.term * 65_537) | 0;
    case 'greeting':
      return 1;
    case 'greeting-response':
      return (m.term * 257 + m.membership.generation) | 0;
    case 'vote-request':
      return (m.term * 263) | 0;
    case 'vote-response':
      return (m.term * 269 + (m.granted ? 1 : 0) + m.flushLsn) | 0;
    case 'elected':
      return (m.term * 271 + m.history.length) | 0;
    case 'elected-response':
      return (m.term * 277 + m.startLsn) | 0;
  }
}
