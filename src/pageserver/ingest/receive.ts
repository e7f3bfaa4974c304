/**
 * The driver of ingest for one timeline: WAL from a safekeeper → records → interpreter → write path.
 *
 *            wake (broker, list, reader)          stream ends, silence, bad WAL
 *   asleep ───────────────────────────→ streaming ───────────────→ choose another ─→ streaming …
 *      ↑                                   │ caught up and everything published for a while
 *      └───────────────────────────────────┘
 *
 * Only one safekeeper at a time is read: the one known to have committed most. Chunks wait in a short queue; the socket is
 * paused while it is full. A record that cannot be interpreted stops this timeline, and says so in its status; everything
 * up to it stays readable.
 */
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import {type Lsn, formatLsn, invalidLsn} from '#postgres/lsn.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {WalStreamClient} from '#wire/wal-stream.ts';
import {RecordIngest} from '#pageserver/ingest/record-ingest.ts';
import type {PageserverMetrics} from '#pageserver/metrics.ts';
import type {Timeline} from '#pageserver/timeline/timeline.ts';
import {TimelineError} from '#pageserver/timeline/timeline-reader.ts';

export interface SafekeeperAddress {
  readonly nodeId: number;
  readonly host: string;
  readonly port: number;
}

export interface IngestOptions {
  readonly timeline: Timeline;
  readonly token: () => Promise<string>;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: PageserverMetrics;
  /** Shared by all timelines: how many may be asking a safekeeper for the first time at once. Thousands attach together. */
  readonly firstWords: {free: number};
}

interface Candidate extends SafekeeperAddress {
  commitLsn: Lsn;
  /** Not before this monotonic time. */
  retryAtMs: number;
  failures: number;
}

const queueBytesMax = 8 * 1024 * 1024;
const tickMs = 1000;
/** A safekeeper says something every second. A compute that starts waits for us meanwhile: five are enough. */
const silenceMsMax = 5000;
/** Another safekeeper has more, and the present one has sent nothing for so long. */
const stallMsMax = 2000;
/** Somebody waits for WAL that exists, and none has come for so long: perhaps another safekeeper answers. */
const hurryMs = 400;
/** Caught up and published for so long: let the connection go. A new word of the broker brings it back. */
const idleMs = 60_000;
/** The same for a connection that never had any WAL for us. */
const idleMsUnused = 3000;
const retryMsFirst = 200;
const retryMsMax = 10_000;
/** Once failures are no news: one follows each restart of a safekeeper. */
const failuresTold = 3;
/** Other work gets a turn after this many bytes of WAL. */
const turnBytes = 256 * 1024;
/** Safekeepers that gave unreadable WAL at one position, before it is taken for unreadable everywhere. */
const badWalMax = 3;

export class TimelineIngest {
  readonly #options: IngestOptions;
  readonly #candidates = new Map<number, Candidate>();
  /** Made when the first WAL comes: a branch that rests costs no record. */
  #record: WalRecord | undefined;
  #stopped = false;
  #timer: Timer | undefined;
  #hurryTimer: Timer | undefined;

  #stream: WalStreamClient | undefined;
  #streaming: Candidate | undefined;
  #connecting = false;
  #paused = false;
  #heardAtMs = 0;
  #walAtMs = 0;
  #wanted = false;
  #hadWal = false;
  /** remoteConsistentLsn that the present safekeeper was told last. */
  #told: Lsn = invalidLsn;
  /** One of firstWords is taken. */
  #waitsForWord = false;

  readonly #queue: Buffer[] = [];
  #queueBytes = 0;
  #pumping = false;
  #reader: WalReader | undefined;
  #records: RecordIngest | undefined;
  #badWal = {position: invalidLsn, count: 0};

  constructor(options: IngestOptions) {
    this.#options = options;
    options.timeline.onWanted = (lsn) => {
      this.#wanted = true;
      this.#wake();
      this.#hurry(lsn, this.#candidates.size);
    };
    options.timeline.onRelease = () => {
      if (this.#stream !== undefined || this.#connecting || this.#pumping) return false;
      this.#records = undefined;
      return true;
    };
  }

  /** The newest commit LSN that anybody has told of. */
  get knownCommitLsn(): Lsn {
    let newest = this.#options.timeline.lastRecordLsn;
    for (const c of this.#candidates.values()) if (c.commitLsn > newest) newest = c.commitLsn;
    return newest;
  }

  /** Committed WAL that is not ingested yet. */
  get lagBytes(): number {
    return this.knownCommitLsn - this.#options.timeline.lastRecordLsn;
  }

  /** The safekeepers of the timeline, from the control plane or the index: they are looked at once even when the broker is silent. */
  setSafekeepers(list: readonly SafekeeperAddress[]): void {
    for (const nodeId of this.#candidates.keys())
      if (!list.some((s) => s.nodeId === nodeId)) this.#candidates.delete(nodeId);
    for (const s of list) this.#learn(s, invalidLsn);
    this.#wanted = true;
    this.#wake();
  }

  /** A word of the broker. */
  heard(safekeeper: SafekeeperAddress & {readonly commitLsn: Lsn}): void {
    this.#learn(safekeeper, safekeeper.commitLsn);
    if (safekeeper.commitLsn > this.#options.timeline.lastRecordLsn) this.#wake();
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
    this.#hurryTimer?.cancel();
    this.#options.timeline.onWanted = () => {};
    this.#options.timeline.onRelease = () => false;
    this.#close();
  }

  #learn({nodeId, host, port}: SafekeeperAddress, commitLsn: Lsn): void {
    const known = this.#candidates.get(nodeId);
    if (known !== undefined && known.host === host && known.port === port) {
      if (commitLsn > known.commitLsn) known.commitLsn = commitLsn;
      return;
    }
    this.#candidates.set(nodeId, {nodeId, host, port, commitLsn, retryAtMs: 0, failures: 0});
  }

  /** Runs while there is a stream or one is wanted. */
  #arm(): void {
    if (this.#stopped || this.#timer !== undefined) return;
    this.#timer = this.#options.clock.setTimer(tickMs, () => {
      this.#timer = undefined;
      this.#tick();
      if (this.#stream !== undefined || this.#wanted || this.#connecting) this.#arm();
    });
  }

  #tick(): void {
    if (this.#stopped) return;
    const {clock, timeline} = this.#options;
    const now = clock.monotonicMs();
    const {lastRecordLsn} = timeline;
    const known = this.knownCommitLsn;
    if (this.#stream === undefined) {
      if (known > lastRecordLsn || this.#wanted) this.#wake();
      return;
    }
    const told = this.#told;
    this.#sendFeedback();
    if (this.#queueBytes > 0 || this.#paused) return;
    const behind = this.#streaming !== undefined && known > this.#stream.nextLsn;
    if (now - this.#heardAtMs > silenceMsMax) this.#fail('it has been silent');
    else if (behind && known > (this.#streaming?.commitLsn ?? 0) && now - this.#walAtMs > stallMsMax)
      this.#fail('another safekeeper has more');
    else if (
      now - this.#walAtMs > (this.#hadWal ? idleMs : idleMsUnused) &&
      known <= lastRecordLsn &&
      timeline.remoteConsistentLsn >= timeline.state.lastRecordLsn &&
      // What was told in this turn is lost with the connection: the safekeeper would keep the WAL until the next one.
      told >= timeline.remoteConsistentLsn
    )
      this.#close();
  }

  #wake(): void {
    if (this.#stopped || this.#stream !== undefined || this.#connecting || this.#pumping) return;
    if (this.#options.timeline.state.ingestError !== undefined) {
      this.#wanted = false;
      return;
    }
    this.#wanted = true;
    this.#arm();
    void this.#connect();
  }

  /**
   * A compute that starts waits for what its proposer has just committed, and a safekeeper that was cut off from us looks like
   * one that has nothing new. Each is given a short while.
   */
  #hurry(lsn: Lsn, tries: number): void {
    if (this.#stopped || this.#hurryTimer !== undefined || tries === 0) return;
    const {clock, timeline} = this.#options;
    const sinceMs = clock.monotonicMs();
    this.#hurryTimer = clock.setTimer(hurryMs, () => {
      this.#hurryTimer = undefined;
      if (timeline.lastRecordLsn >= lsn) return;
      if (this.#stream !== undefined && this.#walAtMs < sinceMs && this.#queueBytes === 0 && !this.#pumping) {
        this.#fail('it does not send what is waited for');
        this.#wake();
      }
      this.#hurry(lsn, tries - 1);
    });
  }

  #choose(): Candidate | undefined {
    const now = this.#options.clock.monotonicMs();
    let best: Candidate | undefined;
    for (const c of this.#candidates.values()) {
      if (c.retryAtMs > now) continue;
      if (
        best === undefined ||
        c.commitLsn > best.commitLsn ||
        (c.commitLsn === best.commitLsn && c.failures < best.failures)
      )
        best = c;
    }
    return best;
  }

  async #connect(): Promise<void> {
    const {timeline, token, clock, log} = this.#options;
    const candidate = this.#choose();
    // In both cases the next tick tries again.
    if (candidate === undefined || this.#options.firstWords.free <= 0) return;
    this.#connecting = true;
    this.#options.firstWords.free--;
    this.#waitsForWord = true;
    this.#streaming = candidate;
    try {
      await this.#prepare();
      const startLsn = timeline.lastRecordLsn;
      const {systemId} = timeline.state;
      this.#reader = new WalReader({startLsn, ...(systemId === '0' ? {} : {systemId: BigInt(systemId)})});
      this.#queue.length = 0;
      this.#queueBytes = 0;
      this.#paused = false;
      let stream: WalStreamClient | undefined;
      let ended = false;
      const current = (): boolean => !ended && (stream === undefined || this.#stream === stream);
      stream = await WalStreamClient.connect({
        address: candidate,
        token: await token(),
        // Safekeepers know tenants, not shards.
        tenantId: timeline.state.shard.tenantId,
        timelineId: timeline.timelineId,
        shard: {
          number: timeline.state.shard.number,
          count: timeline.state.shard.count,
          generation: timeline.state.generation,
        },
        startLsn,
        onWal: (_start, bytes, commitLsn) => {
          if (current()) this.#onWal(candidate, bytes, commitLsn);
        },
        onKeepalive: (commitLsn) => {
          if (current()) this.#onWord(candidate, commitLsn);
        },
        onClose: (reason) => {
          const was = current() && stream !== undefined;
          ended = true;
          if (was) this.#ended(candidate, reason);
        },
      });
      if (this.#stopped || ended) {
        stream.close();
        if (!this.#stopped) this.#backOff(candidate, new Error('the stream ended at once'));
        return;
      }
      this.#stream = stream;
      this.#wanted = false;
      this.#hadWal = false;
      this.#told = invalidLsn;
      this.#arm();
      this.#heardAtMs = this.#walAtMs = clock.monotonicMs();
      log.debug('streaming WAL', {safekeeper: candidate.nodeId, from: formatLsn(startLsn)});
      this.#sendFeedback();
    } catch (error) {
      this.#backOff(candidate, error as Error);
    } finally {
      this.#connecting = false;
    }
  }

  /** Loads, once, what ingest has in memory. */
  async #prepare(): Promise<RecordIngest> {
    const {timeline} = this.#options;
    await timeline.waitForLsn(timeline.lastRecordLsn); // a branch: its ancestor's part
    return (this.#records ??= await RecordIngest.load(timeline, (work) => this.#patiently(work)));
  }

  #gotWord(): void {
    if (this.#waitsForWord) this.#options.firstWords.free++;
    this.#waitsForWord = false;
  }

  #onWord(candidate: Candidate, commitLsn: Lsn): void {
    this.#gotWord();
    this.#heardAtMs = this.#options.clock.monotonicMs();
    this.#options.timeline.state.walError = undefined;
    if (commitLsn > candidate.commitLsn) candidate.commitLsn = commitLsn;
    candidate.failures = 0;
  }

  #onWal(candidate: Candidate, bytes: Buffer, commitLsn: Lsn): void {
    this.#onWord(candidate, commitLsn);
    this.#walAtMs = this.#heardAtMs;
    this.#hadWal = true;
    this.#queue.push(bytes);
    this.#queueBytes += bytes.length;
    if (this.#queueBytes > queueBytesMax && !this.#paused) {
      this.#paused = true;
      this.#stream?.pause();
    }
    void this.#pump();
  }

  /** One at a time: turns queued chunks into records until the queue is empty. */
  async #pump(): Promise<void> {
    if (this.#pumping || this.#stopped) return;
    this.#pumping = true;
    try {
      const records = await this.#prepare();
      const record = (this.#record ??= new WalRecord());
      let turn = 0;
      for (let chunk = this.#queue.shift(); chunk !== undefined && !this.#stopped; chunk = this.#queue.shift()) {
        const reader = this.#reader;
        if (reader === undefined) break;
        this.#queueBytes -= chunk.length;
        reader.push(chunk);
        while (!this.#stopped && reader.next(record)) {
          const busy = records.take(record);
          if (busy !== undefined) await busy;
          this.#options.metrics.ingestedRecords.inc();
        }
        this.#options.metrics.ingestedBytes.inc(chunk.length);
        if (reader.failure !== undefined) {
          this.#badWalAt(reader.failure.position, reader.failure.reason);
          break;
        }
        if (this.#paused && this.#queueBytes < queueBytesMax / 2) {
          this.#paused = false;
          this.#stream?.resume();
        }
        turn += chunk.length;
        if (turn >= turnBytes) {
          turn = 0;
          await this.#options.clock.sleep(0);
        }
      }
      this.#sendFeedback();
    } catch (error) {
      this.#stopIngest(error as Error);
    } finally {
      this.#pumping = false;
    }
  }

  /** The object store may be away for a while: that delays ingest, it does not stop it. */
  async #patiently(work: () => Promise<void>): Promise<void> {
    for (let delay = retryMsFirst; ; delay = Math.min(delay * 2, retryMsMax)) {
      try {
        return await work();
      } catch (error) {
        if (this.#stopped || !(error instanceof TimelineError) || error.code !== 'unavailable') throw error;
        this.#options.log.warn('ingest waits for the object store', {error: error.message});
        await this.#options.clock.sleep(delay);
      }
    }
  }

  /** A chunk does not decode. Another safekeeper may have it right. */
  #badWalAt(position: Lsn, reason: string): void {
    this.#badWal = {position, count: this.#badWal.position === position ? this.#badWal.count + 1 : 1};
    const message = `WAL at ${formatLsn(position)} from safekeeper ${this.#streaming?.nodeId} cannot be read: ${reason}`;
    if (this.#badWal.count >= Math.min(badWalMax, Math.max(1, this.#candidates.size)))
      this.#stopIngest(new Error(message));
    else this.#fail(message);
  }

  #stopIngest(error: Error): void {
    if (this.#stopped) return;
    const {timeline, log} = this.#options;
    log.error('ingest of the timeline stops', {error: error.message, at: formatLsn(timeline.lastRecordLsn)});
    timeline.ingestStopped(error.message);
    this.#close();
  }

  #sendFeedback(): void {
    const {timeline} = this.#options;
    this.#told = timeline.remoteConsistentLsn;
    this.#stream?.sendFeedback({
      lastReceivedLsn: timeline.lastRecordLsn,
      diskConsistentLsn: timeline.diskConsistentLsn,
      remoteConsistentLsn: this.#told,
    });
  }

  #fail(reason: string): void {
    const candidate = this.#streaming;
    this.#close();
    if (candidate !== undefined) this.#backOff(candidate, new Error(reason));
    this.#wanted = true;
  }

  #ended(candidate: Candidate, reason: Error | undefined): void {
    this.#close();
    this.#backOff(candidate, reason ?? new Error('the stream ended'));
    this.#wanted = true;
    // Another one can be asked at once.
    if (this.#choose() !== undefined) this.#wake();
  }

  #backOff(candidate: Candidate, error: Error): void {
    this.#gotWord();
    if (this.#stopped) return;
    candidate.failures++;
    const delay = Math.min(retryMsFirst * 2 ** (candidate.failures - 1), retryMsMax);
    candidate.retryAtMs = this.#options.clock.monotonicMs() + delay;
    // What it said it had is no reason to prefer it any more.
    candidate.commitLsn = invalidLsn;
    this.#wanted = true;
    if ([...this.#candidates.values()].every(({failures}) => failures >= failuresTold))
      this.#options.timeline.state.walError = `no safekeeper gives WAL: ${candidate.nodeId} said: ${error.message}`;
    this.#arm();
    this.#options.log.warn('safekeeper not usable now', {
      safekeeper: candidate.nodeId,
      at: formatLsn(this.#options.timeline.lastRecordLsn),
      error: error.message,
    });
  }

  /** Lets go of the stream. Chunks not yet decoded are asked for again. */
  #close(): void {
    const stream = this.#stream;
    this.#gotWord();
    this.#record = undefined;
    this.#stream = undefined;
    this.#streaming = undefined;
    this.#reader = undefined;
    this.#queue.length = 0;
    this.#queueBytes = 0;
    this.#paused = false;
    stream?.close();
  }
}
