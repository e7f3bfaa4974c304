/**
 * What proposers, readers of WAL and safekeepers say to each other: binary frames (runtime/net.ts), little-endian.
 *
 * A connection opens with hello (frame 1, JSON `SafekeeperHello`) and welcome (frame 2, JSON `{nodeId}`) or refused
 * (frame 3, JSON `Refusal`); a safekeeper may also send a refusal later, just before it closes. Then:
 *
 *   proposer                         safekeeper
 *   greeting            ->
 *                       <-           greeting-response   its term and membership
 *   vote-request        ->
 *                       <-           vote-response       term durable before this is sent
 *   elected             ->                               truncates where histories part, adopts the history
 *                       <-           elected-response    where the proposer's stream starts
 *   append …            ->                               pipelined; empty ones carry a commit LSN or ask for a sign of life
 *                       <-           append-response     flushLsn is durable and ends a record
 *
 *   reader                           safekeeper
 *                       <-           wal …, keepalive    committed WAL; with a term in the hello, up to flushLsn
 *   feedback            ->
 */
import {type Lsn, readLsn64, writeLsn64} from '#postgres/lsn.ts';
import {ByteReader, ByteWriter, WireError} from '#wire/safekeeper-bytes.ts';
import type {ShardReporter} from '#wire/shard-feedback.ts';
import {shardCountMax} from '#wire/shard.ts';

/** A safekeeper of a timeline; port is that of its frame listener. */
export interface Member {
  readonly nodeId: number;
  readonly host: string;
  readonly port: number;
}

/**
 * Who accepts a timeline's WAL. A change goes through a joint configuration: while `newMembers` is not empty, every quorum
 * needs a majority of both sets. Generations only grow; a message of another generation is refused.
 */
export interface Membership {
  readonly generation: number;
  readonly members: readonly Member[];
  readonly newMembers: readonly Member[];
}

/** From `lsn` on, WAL was written by the proposer of `term`, up to the next entry's lsn. */
export interface TermEntry {
  readonly term: number;
  readonly lsn: Lsn;
}
export type TermHistory = readonly TermEntry[];

export type ProposerMessage =
  | {
      readonly kind: 'greeting';
      readonly tenantId: string;
      readonly timelineId: string;
      /** PG_VERSION_NUM of the compute; the major must be the timeline's. */
      readonly pgVersion: number;
      /** pg_control's system identifier, decimal; empty = not known. */
      readonly systemId: string;
      readonly generation: number;
    }
  | {readonly kind: 'vote-request'; readonly generation: number; readonly term: number}
  | {readonly kind: 'elected'; readonly generation: number; readonly term: number; readonly history: TermHistory}
  | {
      readonly kind: 'append';
      readonly generation: number;
      readonly term: number;
      readonly beginLsn: Lsn;
      /** What the proposer knows to be committed; may be beyond beginLsn + bytes.length. */
      readonly commitLsn: Lsn;
      /** Ask for an append-response at once even if nothing was flushed. */
      readonly wantsReply: boolean;
      readonly bytes: Buffer;
    };

export type AcceptorMessage =
  | {
      readonly kind: 'greeting-response';
      readonly nodeId: number;
      readonly term: number;
      readonly membership: Membership;
    }
  | {
      readonly kind: 'vote-response';
      readonly generation: number;
      /** The acceptor's term after the request. */
      readonly term: number;
      readonly granted: boolean;
      readonly flushLsn: Lsn;
      readonly commitLsn: Lsn;
      /** Cut at flushLsn: the last entry's term is the term of the last WAL that is durable here. */
      readonly history: TermHistory;
    }
  | {
      readonly kind: 'elected-response';
      readonly generation: number;
      /** Higher than the proposer's: it is deposed and `startLsn` means nothing. */
      readonly term: number;
      /** Durable and equal to the proposer's WAL up to here; the first append begins here. */
      readonly startLsn: Lsn;
      readonly commitLsn: Lsn;
    }
  | {
      readonly kind: 'append-response';
      readonly generation: number;
      /** Higher than the proposer's: it is deposed and the LSNs mean nothing. */
      readonly term: number;
      /** Durable, at the end of a record. */
      readonly flushLsn: Lsn;
      /** All bytes below are durable; may lie inside a record. For flow control only: one record may be larger than any window. */
      readonly syncedLsn: Lsn;
      readonly commitLsn: Lsn;
      /** What the pageserver told this safekeeper; 0 = nothing yet. For back-pressure. */
      readonly feedback: WalFeedback;
    };

/** How far a reader is. remoteConsistentLsn: uploaded and its generation validated, WAL below is not asked for again. */
export interface WalFeedback {
  readonly lastReceivedLsn: Lsn;
  readonly diskConsistentLsn: Lsn;
  readonly remoteConsistentLsn: Lsn;
  /** Of a sharded tenant, from a safekeeper: each shard by number; the fields above are the least of them. */
  readonly shards?: readonly WalFeedback[];
}

export type ReaderMessage =
  | {readonly kind: 'wal'; readonly startLsn: Lsn; readonly commitLsn: Lsn; readonly bytes: Buffer}
  | {readonly kind: 'keepalive'; readonly commitLsn: Lsn};

/** JSON of the hello frame. Ids are 32 lowercase hex digits, LSNs `HI/LO`. */
export type SafekeeperHello =
  | {readonly token: string; readonly service: 'proposer'; readonly tenantId: string; readonly timelineId: string}
  /** A peer asks what this safekeeper has: the welcome is a `PeerStateWelcome`, and nothing follows. */
  | {readonly token: string; readonly service: 'state'; readonly tenantId: string; readonly timelineId: string}
  | {
      readonly token: string;
      readonly service: 'wal';
      readonly tenantId: string;
      readonly timelineId: string;
      readonly startLsn: string;
      /** A proposer's recovery read: WAL up to flushLsn, for as long as the safekeeper is in this term. */
      readonly term?: number;
      /** A safekeeper copies the timeline (pulled-state.ts judges what it got): WAL up to flushLsn, in whatever term. */
      readonly copy?: boolean;
      /** A pageserver: whose feedback will follow (shard-feedback.ts). */
      readonly shard?: ShardReporter;
    };

/** JSON of the welcome to a hello for the service `state`. */
export interface PeerStateWelcome {
  readonly nodeId: number;
  /** What the control file would say now, in its own form (safekeeper/control-file.ts), base64. */
  readonly controlFile: string;
  /** HI/LO. */
  readonly flushLsn: string;
}

/** JSON of a refused frame: the safekeeper closes after it. */
export interface Refusal {
  readonly code: RefusalCode;
  readonly message: string;
}
export type RefusalCode =
  | 'bad-request'
  | 'unauthorized'
  | 'no-timeline'
  | 'wrong-timeline'
  | 'wrong-generation'
  | 'stale-term'
  | 'not-elected'
  | 'bad-history'
  | 'gap'
  | 'bad-wal'
  | 'wal-trimmed'
  | 'disk-full'
  | 'busy'
  | 'stopping';

/** What is not in the form of a refusal is one nevertheless. */
export function parseRefusal(payload: Buffer): Refusal {
  try {
    const {code, message} = JSON.parse(payload.toString('utf8')) as Refusal;
    return {code, message: String(message)};
  } catch {
    return {code: 'bad-request', message: 'a refusal that is not JSON'};
  }
}

export const frameHello = 1;
export const frameWelcome = 2;
export const frameRefused = 3;
const frameGreeting = 10;
const frameGreetingResponse = 11;
const frameVoteRequest = 12;
const frameVoteResponse = 13;
const frameElected = 14;
const frameElectedResponse = 15;
export const frameAppend = 16;
const frameAppendResponse = 17;
const frameWal = 20;
const frameKeepalive = 21;
const frameFeedback = 22;

const feedbackBytes = 24;
/** Of a tenant that is not sharded. */
const appendResponseBytes = 64;

/** A frame to send: `connection.send(frame.type, ...frame.parts)`. */
export interface Frame {
  readonly type: number;
  readonly parts: readonly Buffer[];
}

const appendHeaderBytes = 32;
const historyEntriesMax = 100_000;
const membersMax = 32;

export function encodeProposerMessage(message: ProposerMessage): Frame {
  switch (message.kind) {
    case 'append': {
      // generation u32, flags u32 (1 = wants a reply), term u64, beginLsn u64, commitLsn u64, then the WAL bytes
      const header = Buffer.allocUnsafe(appendHeaderBytes);
      header.writeUInt32LE(message.generation, 0);
      header.writeUInt32LE(message.wantsReply ? 1 : 0, 4);
      writeLsn64(header, 8, message.term as Lsn);
      writeLsn64(header, 16, message.beginLsn);
      writeLsn64(header, 24, message.commitLsn);
      return {type: frameAppend, parts: message.bytes.length === 0 ? [header] : [header, message.bytes]};
    }
    case 'greeting': {
      const w = new ByteWriter()
        .text(message.tenantId)
        .text(message.timelineId)
        .u32(message.pgVersion)
        .text(message.systemId)
        .u32(message.generation);
      return {type: frameGreeting, parts: [w.finish()]};
    }
    case 'vote-request':
      return {type: frameVoteRequest, parts: [new ByteWriter().u32(message.generation).u64(message.term).finish()]};
    case 'elected': {
      const w = new ByteWriter().u32(message.generation).u64(message.term);
      writeHistory(w, message.history);
      return {type: frameElected, parts: [w.finish()]};
    }
  }
}

/** Throws WireError. The bytes of an append are a view of the payload. */
export function decodeProposerMessage(type: number, payload: Buffer): ProposerMessage {
  switch (type) {
    case frameAppend: {
      if (payload.length < appendHeaderBytes)
        throw new WireError(`append of ${payload.length} bytes is shorter than its header`);
      return {
        kind: 'append',
        generation: payload.readUInt32LE(0),
        wantsReply: (payload.readUInt32LE(4) & 1) !== 0,
        term: fixedLsn(payload, 8),
        beginLsn: fixedLsn(payload, 16),
        commitLsn: fixedLsn(payload, 24),
        bytes: payload.subarray(appendHeaderBytes),
      };
    }
    case frameGreeting: {
      const r = new ByteReader(payload, 'greeting');
      const message: ProposerMessage = {
        kind: 'greeting',
        tenantId: r.text(64),
        timelineId: r.text(64),
        pgVersion: r.u32(),
        systemId: r.text(32),
        generation: r.u32(),
      };
      r.end();
      return message;
    }
    case frameVoteRequest: {
      const r = new ByteReader(payload, 'vote-request');
      const message: ProposerMessage = {kind: 'vote-request', generation: r.u32(), term: r.u64()};
      r.end();
      return message;
    }
    case frameElected: {
      const r = new ByteReader(payload, 'elected');
      const message: ProposerMessage = {kind: 'elected', generation: r.u32(), term: r.u64(), history: readHistory(r)};
      r.end();
      return message;
    }
    default:
      throw new WireError(`frame of type ${type} is no message of a proposer`);
  }
}

export function encodeAcceptorMessage(message: AcceptorMessage): Frame {
  switch (message.kind) {
    case 'append-response': {
      // generation u32, 0 u32, then u64: term, flush, synced, commit, lastReceived, diskConsistent, remoteConsistent; of a
      // sharded tenant the last three again for each shard
      const shards = message.feedback.shards ?? [];
      const b = Buffer.allocUnsafe(appendResponseBytes + shards.length * feedbackBytes);
      b.writeUInt32LE(message.generation, 0);
      b.writeUInt32LE(0, 4);
      writeLsn64(b, 8, message.term as Lsn);
      writeLsn64(b, 16, message.flushLsn);
      writeLsn64(b, 24, message.syncedLsn);
      writeLsn64(b, 32, message.commitLsn);
      writeFeedback(b, 40, message.feedback);
      for (const [i, shard] of shards.entries()) writeFeedback(b, appendResponseBytes + i * feedbackBytes, shard);
      return {type: frameAppendResponse, parts: [b]};
    }
    case 'greeting-response': {
      const w = new ByteWriter().u32(message.nodeId).u64(message.term);
      writeMembership(w, message.membership);
      return {type: frameGreetingResponse, parts: [w.finish()]};
    }
    case 'vote-response': {
      const w = new ByteWriter()
        .u32(message.generation)
        .u64(message.term)
        .u8(message.granted ? 1 : 0)
        .u64(message.flushLsn)
        .u64(message.commitLsn);
      writeHistory(w, message.history);
      return {type: frameVoteResponse, parts: [w.finish()]};
    }
    case 'elected-response': {
      const w = new ByteWriter().u32(message.generation).u64(message.term).u64(message.startLsn).u64(message.commitLsn);
      return {type: frameElectedResponse, parts: [w.finish()]};
    }
  }
}

/** Throws WireError. */
export function decodeAcceptorMessage(type: number, payload: Buffer): AcceptorMessage {
  switch (type) {
    case frameAppendResponse:
      if (
        payload.length < appendResponseBytes ||
        (payload.length - appendResponseBytes) % feedbackBytes !== 0 ||
        payload.length > appendResponseBytes + shardCountMax * feedbackBytes
      )
        throw new WireError(`append-response of ${payload.length} bytes`);
      return {
        kind: 'append-response',
        generation: payload.readUInt32LE(0),
        term: fixedLsn(payload, 8),
        flushLsn: fixedLsn(payload, 16),
        syncedLsn: fixedLsn(payload, 24),
        commitLsn: fixedLsn(payload, 32),
        feedback:
          payload.length === appendResponseBytes
            ? readFeedback(payload, 40)
            : {...readFeedback(payload, 40), shards: readFeedbacks(payload, appendResponseBytes)},
      };
    case frameGreetingResponse: {
      const r = new ByteReader(payload, 'greeting-response');
      const message: AcceptorMessage = {
        kind: 'greeting-response',
        nodeId: r.u32(),
        term: r.u64(),
        membership: readMembership(r),
      };
      r.end();
      return message;
    }
    case frameVoteResponse: {
      const r = new ByteReader(payload, 'vote-response');
      const message: AcceptorMessage = {
        kind: 'vote-response',
        generation: r.u32(),
        term: r.u64(),
        granted: r.u8() === 1,
        flushLsn: r.lsn(),
        commitLsn: r.lsn(),
        history: readHistory(r),
      };
      r.end();
      return message;
    }
    case frameElectedResponse: {
      const r = new ByteReader(payload, 'elected-response');
      const message: AcceptorMessage = {
        kind: 'elected-response',
        generation: r.u32(),
        term: r.u64(),
        startLsn: r.lsn(),
        commitLsn: r.lsn(),
      };
      r.end();
      return message;
    }
    default:
      throw new WireError(`frame of type ${type} is no message of a safekeeper to a proposer`);
  }
}

export function encodeReaderMessage(message: ReaderMessage): Frame {
  if (message.kind === 'keepalive') return {type: frameKeepalive, parts: [encodeU64(message.commitLsn)]};
  const header = Buffer.allocUnsafe(16);
  writeLsn64(header, 0, message.startLsn);
  writeLsn64(header, 8, message.commitLsn);
  return {type: frameWal, parts: [header, message.bytes]};
}

/** Throws WireError. The bytes are a view of the payload. */
export function decodeReaderMessage(type: number, payload: Buffer): ReaderMessage {
  if (type === frameWal) {
    if (payload.length < 16) throw new WireError(`wal frame of ${payload.length} bytes is shorter than its header`);
    return {kind: 'wal', startLsn: fixedLsn(payload, 0), commitLsn: fixedLsn(payload, 8), bytes: payload.subarray(16)};
  }
  if (type === frameKeepalive) {
    if (payload.length !== 8) throw new WireError(`keepalive of ${payload.length} bytes instead of 8`);
    return {kind: 'keepalive', commitLsn: fixedLsn(payload, 0)};
  }
  throw new WireError(`frame of type ${type} is no message of a safekeeper to a reader of WAL`);
}

export function encodeFeedback(feedback: WalFeedback): Frame {
  const b = Buffer.allocUnsafe(feedbackBytes);
  writeFeedback(b, 0, feedback);
  return {type: frameFeedback, parts: [b]};
}

/** Throws WireError. */
export function decodeFeedback(type: number, payload: Buffer): WalFeedback {
  if (type !== frameFeedback) throw new WireError(`frame of type ${type} is no message of a reader of WAL`);
  if (payload.length !== feedbackBytes)
    throw new WireError(`feedback of ${payload.length} bytes instead of ${feedbackBytes}`);
  return readFeedback(payload, 0);
}

/** Binary form of a membership: generation u32, then two lists of {nodeId u32, host text, port u32}. Also in the control file. */
export function writeMembership(w: ByteWriter, membership: Membership): void {
  w.u32(membership.generation);
  for (const list of [membership.members, membership.newMembers]) {
    w.u32(list.length);
    for (const m of list) w.u32(m.nodeId).text(m.host).u32(m.port);
  }
}

export function readMembership(r: ByteReader): Membership {
  return {generation: r.u32(), members: readMembers(r), newMembers: readMembers(r)};
}

function readMembers(r: ByteReader): Member[] {
  const count = r.count(12);
  if (count > membersMax)
    throw new WireError(`${count} safekeepers in one membership, at most ${membersMax} are allowed`);
  return Array.from({length: count}, () => ({nodeId: r.u32(), host: r.text(255), port: r.u32()}));
}

export function writeHistory(w: ByteWriter, history: TermHistory): void {
  w.u32(history.length);
  for (const entry of history) w.u64(entry.term).u64(entry.lsn);
}

/** Throws WireError when terms do not ascend or LSNs descend. */
export function readHistory(r: ByteReader): TermHistory {
  const count = r.count(16);
  if (count > historyEntriesMax)
    throw new WireError(`term history of ${count} entries, at most ${historyEntriesMax} are allowed`);
  const history: TermEntry[] = [];
  for (let i = 0; i < count; i++) {
    const entry = {term: r.u64(), lsn: r.lsn()};
    const previous = history[i - 1];
    if (previous !== undefined && (entry.term <= previous.term || entry.lsn < previous.lsn))
      throw new WireError('term history is not in order');
    history.push(entry);
  }
  return history;
}

function writeFeedback(b: Buffer, at: number, feedback: WalFeedback): void {
  writeLsn64(b, at, feedback.lastReceivedLsn);
  writeLsn64(b, at + 8, feedback.diskConsistentLsn);
  writeLsn64(b, at + 16, feedback.remoteConsistentLsn);
}

function readFeedbacks(b: Buffer, start: number): WalFeedback[] {
  const list: WalFeedback[] = [];
  for (let at = start; at < b.length; at += feedbackBytes) list.push(readFeedback(b, at));
  return list;
}

function readFeedback(b: Buffer, at: number): WalFeedback {
  return {
    lastReceivedLsn: fixedLsn(b, at),
    diskConsistentLsn: fixedLsn(b, at + 8),
    remoteConsistentLsn: fixedLsn(b, at + 16),
  };
}

function encodeU64(value: Lsn): Buffer {
  const b = Buffer.allocUnsafe(8);
  writeLsn64(b, 0, value);
  return b;
}

function fixedLsn(b: Buffer, at: number): Lsn {
  try {
    return readLsn64(b, at);
  } catch {
    throw new WireError(`number at byte ${at} of the frame is above 2^53`);
  }
}
