/**
 * Runs a Proposer with real sockets: links to the safekeepers, recovery reads, and the compute's Postgres. The commit path
 * is onWal → step → send, and append-response → step → sendStatus: no timer, no JSON, no copy of WAL.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {ProposerConfig} from '#proposer/config.ts';
import type {PeerStatus} from '#proposer/peer.ts';
import type {ProposerInput, ProposerOutput} from '#proposer/proposer-io.ts';
import {Proposer} from '#proposer/proposer.ts';
import {isQuorum} from '#proposer/quorum.ts';
import {Recovery} from '#proposer/recovery.ts';
import {SafekeeperLink} from '#proposer/safekeeper-link.ts';
import {Spare} from '#proposer/spare.ts';
import {WalBatcher} from '#proposer/wal-batcher.ts';
import {encodeThrottle, throttleFor} from '#proposer/throttle.ts';
import type {Clock, Timer} from '#runtime/clock.ts';
import {failpoint} from '#runtime/failpoint.ts';
import type {Disk} from '#runtime/disk.ts';
import type {Log} from '#runtime/log.ts';
import type {Address} from '#runtime/net.ts';
import type {Random} from '#runtime/random.ts';
import {ReplicationClient} from '#wire/pg-replication.ts';
import {allMembers} from '#wire/membership.ts';
import type {Member, Membership, WalFeedback} from '#wire/safekeeper.ts';
import {combineFeedback} from '#wire/shard-feedback.ts';
import {WalStreamClient} from '#wire/wal-stream.ts';

const tickMs = 1000;
const tickEarlyMs = 100;
/**
 * While WAL is under way: how often it is looked at whether something has waited for too long. One timer instead of one for each
 * thing, since also a timer that was cancelled wakes the process.
 */
const pulseMs = 3;
/** WAL waits at least so long for a safekeeper that has fallen behind the quorum. */
const laggardMs = 3;
/** The spare gets its WAL so much later, and is one only when it lacks no more than that. */
const spareMs = 6;
const spareLagBytes = 1024 * 1024;
const postgresRetryMs = 200;
/** How often the pageserver's lag is looked at while WAL flows; and while writers wait, how often safekeepers are asked for it. */
const throttleEveryMs = 50;
const throttledTickMs = 100;
/** Failpoints: the proposer writes no file, its durable steps are what others write for it. */
const sendPoints = {
  greeting: 'proposer.send-greeting.before',
  'vote-request': 'proposer.send-vote-request.before',
  elected: 'proposer.send-elected.before',
  append: 'proposer.send-append.before',
} as const;
const receivePoints = {
  'greeting-response': 'proposer.receive-greeting-response.before',
  'vote-response': 'proposer.receive-vote-response.before',
  'elected-response': 'proposer.receive-elected-response.before',
  'append-response': 'proposer.receive-append-response.before',
} as const;
/** After the compute has stopped: how long to wait until safekeepers have confirmed the last commit LSN. */
const farewellMs = 3000;

export type ProposerEvent =
  /** The term is won and everything before `lsn` is committed: the compute must start from a basebackup at exactly `lsn`. */
  | {readonly event: 'elected'; readonly term: number; readonly lsn: string}
  /** A safekeeper cannot be used at the moment; said once per safekeeper and reason. */
  | {readonly event: 'trouble'; readonly nodeId: number; readonly code: string; readonly message: string}
  | {readonly event: 'streaming'; readonly lsn: string}
  /** The replication connection broke; it is made again until this process is stopped. */
  | {readonly event: 'postgres-lost'; readonly message: string}
  /** Once a second when something has changed: how far the pageserver is. LSNs `HI/LO`; microseconds as in throttle.ts. */
  | {
      readonly event: 'progress';
      readonly commitLsn: string;
      readonly ingestedLsn: string;
      readonly diskConsistentLsn: string;
      readonly remoteConsistentLsn: string;
      readonly lagBytes: number;
      readonly throttleUsPerMib: number;
    }
  /** A newer compute of this branch exists: nothing is acknowledged any more. */
  | {readonly event: 'fenced'; readonly term: number; readonly message: string}
  /** Postgres has shut down in order and everything it wrote is committed. */
  | {readonly event: 'stopped'; readonly commitLsn: string};

export interface StreamFrom {
  readonly address: Address;
  readonly user: string;
  /** `<data directory>/pagoda_throttle`, which Postgres has made. */
  readonly throttlePath?: string;
}

export interface ProposerDriverOptions {
  readonly config: ProposerConfig;
  readonly clock: Clock;
  readonly random: Random;
  readonly disk: Disk;
  readonly log: Log;
  readonly onEvent: (event: ProposerEvent) => void;
}

export class ProposerDriver {
  readonly #options: ProposerDriverOptions;
  readonly #core: Proposer;
  readonly #links = new Map<number, SafekeeperLink>();
  readonly #recoveries = new Map<number, Recovery>();
  readonly #troubles = new Map<number, string>();
  readonly #batcher: WalBatcher;
  readonly #spare = new Spare();
  #token: string;
  #tickTimer: Timer;
  #pulseSet = false;
  /** A commit LSN that safekeepers may not know, now and at the last pulse; 0: none. */
  #untoldLsn = 0;
  #untoldBefore = 0;
  /** Of the compute that streams. */
  #throttlePath: string | undefined;
  #throttleUsPerMib = 0;
  #throttleAtMs = 0;
  #progressText = '';
  /** Where WAL ended at the last tick. */
  #endLsnBefore = 0 as Lsn;
  #postgres: ReplicationClient | undefined;
  #stopped = false;

  constructor(options: ProposerDriverOptions) {
    this.#options = options;
    const {config, clock} = options;
    this.#token = config.token;
    const {safekeepers, newSafekeepers, generation, ...identity} = config;
    const membership: Membership = {
      generation: generation ?? 1,
      members: safekeepers,
      newMembers: newSafekeepers ?? [],
    };
    this.#core = new Proposer({...identity, membership});
    this.#batcher = new WalBatcher({
      clock,
      onBatch: (lsn, bytes) => this.#step({kind: 'wal', lsn, bytes}),
      onWaiting: () => this.#setPulse(),
    });
    for (const member of allMembers(membership)) this.#links.set(member.nodeId, this.#link(member));
    this.#tickTimer = clock.setTimer(tickEarlyMs, () => this.#tick());
  }

  get commitLsn(): Lsn {
    return this.#core.commitLsn;
  }

  status(): {
    term: number;
    phase: string;
    generation: number;
    commitLsn: string;
    endLsn: string;
    peers: readonly PeerStatus[];
  } {
    return {
      generation: this.#core.membership.generation,
      term: this.#core.term,
      phase: this.#core.phase,
      commitLsn: formatLsn(this.#core.commitLsn),
      endLsn: formatLsn(this.#core.endLsn),
      peers: this.#core.peers(),
    };
  }

  setToken(token: string): void {
    this.#token = token;
  }

  /** Streams from Postgres, whose WAL must begin at the elected LSN (or go on where this proposer stopped reading). */
  stream(options: StreamFrom): void {
    if (this.#stopped) return;
    this.#throttlePath = options.throttlePath;
    this.#throttleUsPerMib = 0;
    this.#connectPostgres(options).catch((error: unknown) => this.#postgresLost(options, error));
  }

  stop(): void {
    this.#stopped = true;
    this.#tickTimer.cancel();
    for (const recovery of this.#recoveries.values()) recovery.close();
    for (const link of this.#links.values()) link.close();
    this.#postgres?.close();
  }

  async #connectPostgres(options: StreamFrom): Promise<void> {
    const client = await ReplicationClient.connect({...options, applicationName: 'pagoda'});
    try {
      const {systemId} = this.#options.config;
      const identity = await client.identifySystem();
      if (systemId !== '' && identity.systemId !== systemId)
        throw new Error(`the system identifier of this Postgres is ${identity.systemId}, the branch's is ${systemId}`);
      // Without a slot, a checkpoint may recycle WAL that safekeepers were too slow to take.
      const slot = `pagoda_${this.#options.random.bytes(6).toString('hex')}`;
      await client.createTemporarySlot(slot);
      if (this.#stopped) throw new Error('the proposer is stopping');
      this.#postgres = client;
      const startLsn = this.#core.endLsn;
      client.start({
        slot,
        startLsn,
        onWal: (lsn, bytes) => this.#batcher.add(lsn, bytes),
        onReplyRequested: () => client.sendStatus(this.#core.commitLsn),
        onEnd: (end) => {
          this.#postgres = undefined;
          this.#batcher.sendNow(); // the next stream goes on behind it
          client.close();
          if (this.#stopped) return;
          if (end.kind === 'done') void this.#farewell();
          else this.#postgresLost(options, end.reason);
        },
      });
      client.sendStatus(this.#core.commitLsn);
      this.#options.onEvent({event: 'streaming', lsn: formatLsn(startLsn)});
    } catch (error) {
      client.close();
      throw error;
    }
  }

  #postgresLost(options: StreamFrom, error: unknown): void {
    if (this.#stopped) return;
    this.#options.onEvent({event: 'postgres-lost', message: error instanceof Error ? error.message : String(error)});
    this.#options.clock.setTimer(postgresRetryMs, () => this.stream(options));
  }

  /** Postgres only ends the stream when all it wrote is confirmed; what is left is to tell the safekeepers. */
  async #farewell(): Promise<void> {
    const {clock} = this.#options;
    const {commitLsn} = this.#core;
    const deadline = clock.monotonicMs() + farewellMs;
    for (;;) {
      this.#step({kind: 'commit-due'});
      this.#tickCore();
      await clock.sleep(20);
      if (this.#stopped) return;
      const peers = new Map(this.#core.peers().map((peer) => [peer.nodeId, peer]));
      const told = isQuorum(this.#core.membership, (nodeId) => (peers.get(nodeId)?.commitLsn ?? 0) >= commitLsn);
      const all = [...peers.values()].every((peer) => peer.phase !== 'streaming' || peer.commitLsn >= commitLsn);
      if ((told && all) || clock.monotonicMs() > deadline) break;
    }
    this.#options.onEvent({event: 'stopped', commitLsn: formatLsn(commitLsn)});
  }

  #link(member: Member): SafekeeperLink {
    const {config, clock} = this.#options;
    return new SafekeeperLink({
      member,
      tenantId: config.tenantId,
      timelineId: config.timelineId,
      token: () => this.#token,
      clock,
      hurry: () => !this.#isSynced,
      onConnected: () => {
        this.#troubles.delete(member.nodeId);
        this.#step({kind: 'connected', peer: member.nodeId});
      },
      onDisconnected: () => {
        this.#step({kind: 'disconnected', peer: member.nodeId});
        this.#loseSpare();
      },
      quorumLsn: () => this.#batcher.durableLsn,
      isSpare: () => this.#spare.nodeId === member.nodeId,
      onWaiting: () => this.#setPulse(),
      onMessage: (message) => {
        failpoint(receivePoints[message.kind]);
        this.#step({kind: 'message', peer: member.nodeId, message});
        // After the answer has been looked at: what leaves now carries the newest commit LSN.
        if (message.kind === 'append-response') {
          this.#durable(this.#core.durableLsn);
          this.#releaseWal();
        }
      },
      onTrouble: (code, message) => this.#trouble(member.nodeId, code, message),
    });
  }

  /** Connects to the members that are new, or that have moved, and leaves those that are none any more. */
  #follow(membership: Membership): void {
    const members = allMembers(membership);
    this.#options.log.info('the safekeepers have changed', {
      generation: membership.generation,
      members: membership.members.map((m) => m.nodeId).join(' '),
      newMembers: membership.newMembers.map((m) => m.nodeId).join(' '),
    });
    for (const [nodeId, link] of this.#links) {
      const now = members.find((m) => m.nodeId === nodeId);
      if (now !== undefined && now.host === link.member.host && now.port === link.member.port) continue;
      link.close();
      this.#links.delete(nodeId);
      this.#troubles.delete(nodeId);
      if (now !== undefined) this.#step({kind: 'disconnected', peer: nodeId});
    }
    for (const member of members)
      if (!this.#links.has(member.nodeId)) this.#links.set(member.nodeId, this.#link(member));
  }

  #step(input: ProposerInput): void {
    if (this.#stopped) return;
    for (const output of this.#core.step(input)) this.#carryOut(output);
  }

  #carryOut(output: ProposerOutput): void {
    switch (output.kind) {
      case 'send':
        failpoint(sendPoints[output.message.kind]);
        this.#links.get(output.peer)!.send(output.message);
        break;
      case 'membership':
        this.#follow(output.membership);
        break;
      case 'committed':
        failpoint('proposer.acknowledge.before');
        this.#postgres?.sendStatus(output.lsn);
        this.#throttle();
        this.#untoldLsn = output.lsn;
        this.#setPulse();
        break;
      case 'close':
        this.#links.get(output.peer)!.reset(output.reason);
        break;
      case 'elected':
        this.#options.log.info('won the election', {term: output.term, termStartLsn: formatLsn(output.termStartLsn)});
        break;
      case 'synced':
        failpoint('proposer.elected.before');
        this.#options.onEvent({event: 'elected', term: this.#core.term, lsn: formatLsn(output.lsn)});
        failpoint('proposer.elected.after');
        break;
      case 'recover':
        this.#recover(output.peer, output.donor, output.startLsn, output.term);
        break;
      case 'pause-recovery':
        this.#recoveries.get(output.peer)?.pause();
        break;
      case 'resume-recovery':
        this.#recoveries.get(output.peer)?.resume();
        break;
      case 'stop-recovery':
        this.#recoveries.get(output.peer)?.close();
        this.#recoveries.delete(output.peer);
        break;
      case 'pause-source':
        this.#postgres?.pause();
        break;
      case 'resume-source':
        this.#postgres?.resume();
        break;
      case 'fenced':
        this.stop();
        this.#options.onEvent({
          event: 'fenced',
          term: output.term,
          message: `safekeeper ${output.peer} is in term ${output.term}, this proposer's is ${this.#core.term}: a newer compute of timeline ${this.#options.config.timelineId} has taken over`,
        });
        break;
    }
  }

  #durable(lsn: Lsn): void {
    if (lsn === this.#batcher.durableLsn) return;
    for (const [nodeId, link] of this.#links) if (link.syncedLsn < lsn) this.#spare.noteBehind(nodeId);
    this.#batcher.durable(lsn);
  }

  /** What every safekeeper has acknowledged is on its way to none, and in the window it is no more. */
  #releaseWal(): void {
    let lsn: number = this.#core.windowStartLsn;
    for (const link of this.#links.values()) lsn = Math.min(lsn, link.syncedLsn);
    this.#postgres?.release(lsn as Lsn);
  }

  #chooseSpare(nowMs: number): void {
    const {membership, endLsn} = this.#core;
    const peers = new Map(this.#core.peers().map((peer) => [peer.nodeId, peer]));
    const isUpToDate = (nodeId: number): boolean => {
      const peer = peers.get(nodeId);
      return peer?.phase === 'streaming' && endLsn - peer.flushLsn <= spareLagBytes;
    };
    const members = membership.newMembers.length > 0 ? [] : membership.members;
    const before = this.#spare.nodeId;
    this.#spare.choose(
      nowMs,
      members.map(({nodeId, host}) => ({nodeId, host, isUpToDate: isUpToDate(nodeId)})),
    );
    if (before !== undefined && this.#spare.nodeId !== before) this.#links.get(before)?.sendWaiting();
  }

  /** Its WAL may be the quorum's now. */
  #loseSpare(): void {
    const {nodeId} = this.#spare;
    if (nodeId === undefined) return;
    this.#spare.noteLost();
    this.#links.get(nodeId)?.sendWaiting();
  }

  #setPulse(): void {
    if (this.#pulseSet) return;
    this.#pulseSet = true;
    this.#options.clock.setTimer(pulseMs, () => this.#pulse());
  }

  #pulse(): void {
    this.#pulseSet = false;
    if (this.#stopped) return;
    const nowMs = this.#options.clock.monotonicMs();
    if (this.#batcher.isWaiting) this.#batcher.tick(nowMs);
    for (const [nodeId, link] of this.#links) {
      if (link.waitingSinceMs === undefined) continue;
      const isSpare = nodeId === this.#spare.nodeId;
      if (nowMs - link.waitingSinceMs < (isSpare ? spareMs : laggardMs)) {
        this.#setPulse();
        continue;
      }
      if (isSpare) this.#spare.noteDue(nowMs, link.waitingLsn! < this.#batcher.durableLsn);
      link.sendWaiting();
    }
    // While commits go on, the next append is on its way: only the last one of a burst needs a message of its own.
    if (this.#untoldLsn !== 0 && this.#untoldLsn === this.#untoldBefore) {
      this.#untoldLsn = 0;
      this.#step({kind: 'commit-due'});
    }
    this.#untoldBefore = this.#untoldLsn;
    if (this.#untoldLsn !== 0 || this.#batcher.isWaiting) this.#setPulse();
  }

  #recover(peer: number, donor: number, startLsn: Lsn, term: number): void {
    const {config, log} = this.#options;
    const {host, port} = this.#links.get(donor)!.member;
    log.info('bringing a safekeeper up to date', {safekeeper: peer, from: donor, startLsn: formatLsn(startLsn)});
    const recovery: Recovery = new Recovery({
      open: async (callbacks) =>
        await WalStreamClient.connect({
          address: {host, port},
          token: this.#token,
          tenantId: config.tenantId,
          timelineId: config.timelineId,
          startLsn,
          term,
          onKeepalive: () => {},
          ...callbacks,
        }),
      onWal: (lsn, bytes) => this.#step({kind: 'recovered', peer, lsn, bytes}),
      onEnd: (error) => {
        log.warn('reading from another safekeeper failed', {safekeeper: peer, from: donor, error});
        this.#recoveries.delete(peer);
        this.#step({kind: 'recovery-ended', peer});
      },
    });
    this.#recoveries.get(peer)?.close();
    this.#recoveries.set(peer, recovery);
  }

  #trouble(nodeId: number, code: string, message: string): void {
    if (this.#stopped) return;
    const text = `${code} ${message}`;
    if (this.#troubles.get(nodeId) === text) return;
    this.#troubles.set(nodeId, text);
    this.#options.onEvent({event: 'trouble', nodeId, code, message});
  }

  /** What the safekeepers were told by pageservers: how far the slowest shard is. */
  #feedback(): WalFeedback {
    // The compute started from a basebackup there: so much the pageserver has.
    const start = this.#core.termStartLsn;
    const feedback = combineFeedback(this.#core.peers().map((peer) => peer.feedback));
    return feedback.lastReceivedLsn >= start ? feedback : {...feedback, lastReceivedLsn: start};
  }

  /** Tells the compute's backends how long to wait for their WAL. */
  #throttle(): void {
    if (this.#throttlePath === undefined) return;
    const nowMs = this.#options.clock.monotonicMs();
    if (nowMs - this.#throttleAtMs < throttleEveryMs) return;
    this.#throttleAtMs = nowMs;
    const usPerMib = throttleFor(this.#core.endLsn - this.#feedback().lastReceivedLsn);
    if (usPerMib === this.#throttleUsPerMib) return;
    try {
      const file = this.#options.disk.open(this.#throttlePath, 'write');
      file.write(encodeThrottle(usPerMib), 0);
      file.close();
    } catch (error) {
      this.#options.log.warn('writers cannot be told to wait', {path: this.#throttlePath, error});
      this.#throttlePath = undefined;
      return;
    }
    if (this.#throttleUsPerMib === 0) this.#tickWhileThrottled();
    this.#throttleUsPerMib = usPerMib;
  }

  /** Without WAL no answers come: safekeepers are asked how far the pageserver is, so that writers go on as soon as they may. */
  #tickWhileThrottled(): void {
    this.#options.clock.setTimer(throttledTickMs, () => {
      if (this.#stopped || this.#throttleUsPerMib === 0) return;
      this.#tickCore();
      this.#throttle();
      this.#tickWhileThrottled();
    });
  }

  #tellProgress(): void {
    const {lastReceivedLsn, diskConsistentLsn, remoteConsistentLsn} = this.#feedback();
    const progress = {
      event: 'progress',
      commitLsn: formatLsn(this.#core.commitLsn),
      ingestedLsn: formatLsn(lastReceivedLsn),
      diskConsistentLsn: formatLsn(diskConsistentLsn),
      remoteConsistentLsn: formatLsn(remoteConsistentLsn),
      lagBytes: Math.max(0, this.#core.endLsn - lastReceivedLsn),
      throttleUsPerMib: this.#throttleUsPerMib,
    } as const;
    const text = JSON.stringify(progress);
    if (text === this.#progressText) return;
    this.#progressText = text;
    this.#options.onEvent(progress);
  }

  #tick(): void {
    this.#tickTimer = this.#options.clock.setTimer(this.#isSynced ? tickMs : tickEarlyMs, () => this.#tick());
    this.#tickCore();
    this.#chooseSpare(this.#options.clock.monotonicMs());
    if (this.#postgres !== undefined) {
      this.#throttle();
      this.#tellProgress();
      const {endLsn} = this.#core;
      if (endLsn === this.#endLsnBefore) this.#postgres.releaseIdle();
      this.#endLsnBefore = endLsn;
    }
    for (const link of this.#links.values()) link.checkSilence();
    this.#postgres?.sendStatus(this.#core.commitLsn);
  }

  get #isSynced(): boolean {
    return this.#core.phase === 'elected' && this.#core.commitLsn > 0;
  }

  #tickCore(): void {
    this.#step({kind: 'tick', nowMs: this.#options.clock.monotonicMs(), random: this.#options.random.float()});
  }
}
