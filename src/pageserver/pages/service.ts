/**
 * The page service: one connection is one timeline. Requests that memory can answer are answered in the turn in which they
 * arrive; others when their blocks or their LSN are there.
 */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import {type FrameConnection, parseJsonFrame, sendJson} from '#runtime/net.ts';
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {type RelTag, blockSize} from '#postgres/relation.ts';
import {AuthError, type TokenVerifier, requireTenant} from '#wire/auth.ts';
import {
  type PageErrorCode,
  type PageRequest,
  PageServiceError,
  decodePageRequest,
  encodeDbSizeAnswer,
  encodeLeaseAnswer,
  encodeListDbAnswer,
  encodePageError,
  encodePagesHeader,
  encodeRelExistsAnswer,
  encodeRelSizeAnswer,
  pageFrame,
  pagesPerRequestMax,
} from '#wire/pages.ts';
import {type PackedSegment, encodePackedPages, packedCodec} from '#wire/packed-pages.ts';
import {tenantOfShardId} from '#wire/shard.ts';
import type {PageserverMetrics} from '../metrics.ts';
import type {Readers} from './readers.ts';
import {RunMemory} from '../layers/layer-reader.ts';
import {TimelineError} from '../timeline/timeline-reader.ts';
import type {Timeline} from '../timeline/timeline.ts';

const helloMsMax = 15_000;
/** Requests of one connection that wait for blocks or for an LSN; more are not read from the socket. */
const waitingMax = 256;

/** Answers of this many pages and more are made in memory which is used again and again. */
const runPagesMin = 8;
const freeRunsMax = 8;
const freeRuns: Run[] = [];

interface Run {
  /** Pages that are made, one after the other. */
  readonly pages: Buffer;
  /** Blocks as they were read. */
  readonly stored: RunMemory;
}

function takeRun(pages: number): Run | undefined {
  if (pages < runPagesMin) return undefined;
  return freeRuns.pop() ?? {pages: Buffer.allocUnsafeSlow(pagesPerRequestMax * blockSize), stored: new RunMemory()};
}

/** Only after an answer: what a read that failed has begun may still come, and be written there. */
function giveRun(run: Run): void {
  if (freeRuns.length >= freeRunsMax || run.stored.isShared) return;
  run.stored.reset();
  freeRuns.push(run);
}

export interface PageServiceOptions {
  readonly verifier: TokenVerifier;
  /** Throws TimelineError 'not-found'. */
  readonly findTimeline: (tenantId: string, timelineId: string) => Timeline;
  /** Rejects when nobody can tell. */
  readonly isLatest: (tenantId: string, generation: number) => Promise<boolean>;
  readonly readers: Readers;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: PageserverMetrics;
}

export function servePages(connection: FrameConnection, options: PageServiceOptions): void {
  const timer = options.clock.setTimer(helloMsMax, () => connection.destroy());
  let closed = false;
  let readerOf: string | undefined;
  connection.onClose = () => {
    closed = true;
    timer.cancel();
    if (readerOf !== undefined) options.readers.remove(readerOf, connection);
  };
  connection.onFrame = (type, payload) => {
    connection.onFrame = () => connection.destroy(); // nothing may follow before the welcome
    welcome(type, payload, options).then(
      (timeline) => {
        timer.cancel();
        if (closed) return;
        readerOf = timeline.tenantId;
        options.readers.add(readerOf, connection);
        new PageConnection(connection, timeline, options).start();
        sendJson(connection, pageFrame.welcome, {});
      },
      (error: unknown) => {
        timer.cancel();
        const known = error instanceof TimelineError || error instanceof AuthError;
        if (!known) options.log.error('a page connection failed', {error});
        sendJson(connection, pageFrame.refused, {
          code: known ? error.code : 'internal',
          message: known ? error.message : 'internal error',
        });
        connection.close();
      },
    );
  };
}

async function welcome(type: number, payload: Buffer, options: PageServiceOptions): Promise<Timeline> {
  if (type !== pageFrame.hello) throw new TimelineError('bad-request', 'the first frame must be a hello');
  let hello: {token?: unknown; tenantId?: unknown; timelineId?: unknown};
  try {
    hello = (parseJsonFrame(payload) ?? {}) as typeof hello;
  } catch {
    throw new TimelineError('bad-request', 'the hello is not JSON');
  }
  const {token, tenantId, timelineId} = hello;
  const claims = await options.verifier.verify(typeof token === 'string' ? token : undefined);
  if (typeof tenantId !== 'string' || typeof timelineId !== 'string')
    throw new TimelineError('bad-request', 'the hello names no tenantId and timelineId');
  let tenant: string;
  try {
    tenant = tenantOfShardId(tenantId);
  } catch (error) {
    throw new TimelineError('bad-request', (error as Error).message);
  }
  requireTenant(claims, ['control'], tenant, timelineId);
  return options.findTimeline(tenantId, timelineId);
}

class PageConnection {
  readonly #connection: FrameConnection;
  readonly #timeline: Timeline;
  readonly #options: PageServiceOptions;
  #waiting = 0;
  #paused = false;
  #blocked = false;

  constructor(connection: FrameConnection, timeline: Timeline, options: PageServiceOptions) {
    this.#connection = connection;
    this.#timeline = timeline;
    this.#options = options;
  }

  start(): void {
    this.#connection.onFrame = (type, payload) => this.#onFrame(type, payload);
    this.#connection.onDrain = () => {
      this.#blocked = false;
      this.#flow();
    };
  }

  #onFrame(type: number, payload: Buffer): void {
    let request: PageRequest;
    try {
      request = decodePageRequest(type, payload);
    } catch (error) {
      if (!(error instanceof PageServiceError) || payload.length < 4) return this.#connection.destroy();
      return this.#fail(payload.readUInt32LE(0), error.code, error.message);
    }
    const started = this.#options.clock.monotonicMs();
    const timeline = this.#timeline;
    if (request.kind === 'getPages' && timeline.isReadableAt(request.notModifiedSinceLsn)) {
      // The common case, without a promise.
      let run: Run | undefined;
      try {
        run = takeRun(request.count);
        const at = this.#readLsn(request);
        if (request.packed && run !== undefined) {
          const segments = timeline.getPackedRelPagesNow(
            request,
            request.blockNumber,
            request.count,
            at,
            run.pages,
            run.stored,
          );
          if (Array.isArray(segments)) return this.#sendPacked(request, segments, run, started);
          return this.#wait(
            request,
            segments.then((slow) => this.#sendPacked(request, slow, run!, started)),
          );
        }
        const pages = timeline.getRelPagesNow(request, request.blockNumber, request.count, at, run?.pages);
        if (Array.isArray(pages)) return this.#sendPages(request, pages, run, started);
        return this.#wait(
          request,
          pages.then((slow) => this.#sendPages(request, slow, run, started)),
        );
      } catch (error) {
        return this.#explain(request, error);
      }
    }
    this.#wait(request, this.#answer(request, started));
  }

  async #answer(request: PageRequest, started: number): Promise<void> {
    const timeline = this.#timeline;
    const {requestId} = request;
    if (request.kind === 'lease') {
      const granted = await timeline.lease(request.requestLsn, request.blockNumber * 1000);
      return this.#send(pageFrame.leaseAnswer, encodeLeaseAnswer(requestId, granted));
    }
    await timeline.waitForLsn(request.notModifiedSinceLsn);
    const at = this.#readLsn(request);
    const rel: RelTag = request;
    switch (request.kind) {
      case 'getPages':
        return this.#sendPages(
          request,
          await timeline.getRelPages(rel, request.blockNumber, request.count, at),
          undefined,
          started,
        );
      case 'relSize':
        return this.#send(pageFrame.relSizeAnswer, encodeRelSizeAnswer(requestId, await timeline.relSize(rel, at)));
      case 'relExists':
        return this.#send(
          pageFrame.relExistsAnswer,
          encodeRelExistsAnswer(requestId, (await timeline.relSize(rel, at)) !== undefined),
        );
      case 'dbSize':
        return this.#send(
          pageFrame.dbSizeAnswer,
          encodeDbSizeAnswer(requestId, await timeline.databaseSize(request.dbNode, at)),
        );
      case 'listDb':
        return this.#send(
          pageFrame.listDbAnswer,
          encodeListDbAnswer(requestId, await timeline.listRelations(request.spcNode, request.dbNode, at)),
        );
    }
  }

  /** The newest LSN at which nothing that is read has changed since requestLsn (wire/pages.ts). */
  #readLsn(request: PageRequest): Lsn {
    const {lastRecordLsn, state} = this.#timeline;
    const at = request.requestLsn < lastRecordLsn ? request.requestLsn : lastRecordLsn;
    if (state.ancestor === undefined && at < state.initialLsn)
      throw new TimelineError('lsn-too-old', `${state.describe(at)}: history begins at ${formatLsn(state.initialLsn)}`);
    return at;
  }

  /** `run`: the memory in which the pages lie one after the other; it is used again when they are sent. */
  #sendPages(request: PageRequest, pages: readonly Buffer[], run: Run | undefined, started: number): void {
    const {metrics, clock} = this.#options;
    const header = encodePagesHeader(request.requestId, pages.length);
    if (run === undefined) this.#send(pageFrame.pages, header, ...pages);
    else {
      const bytes = run.pages.subarray(0, pages.length * blockSize);
      const room = this.#connection.sendThen(() => giveRun(run), pageFrame.pages, header, bytes);
      if (!room) this.#hold();
    }
    metrics.getPages.inc(pages.length);
    metrics.getPagesSeconds.observe((clock.monotonicMs() - started) / 1000);
  }

  #sendPacked(request: PageRequest, segments: readonly PackedSegment[], run: Run, started: number): void {
    const {metrics, clock} = this.#options;
    let pages = 0;
    let packed = 0;
    for (const {codec, offsets} of segments) {
      pages += offsets.length;
      if (codec !== packedCodec.none) packed += offsets.length;
    }
    const header = encodePagesHeader(request.requestId, pages);
    // All of them were made in `run`.
    const isPlain = segments.length === 1 && segments[0]!.codec === packedCodec.none;
    const type = isPlain ? pageFrame.pages : pageFrame.packedPages;
    const parts = isPlain ? [segments[0]!.bytes] : encodePackedPages(segments);
    if (!this.#connection.sendThen(() => giveRun(run), type, header, ...parts)) this.#hold();
    metrics.getPages.inc(pages);
    metrics.packedPages.inc(packed);
    metrics.getPagesSeconds.observe((clock.monotonicMs() - started) / 1000);
  }

  #send(type: number, ...parts: Buffer[]): void {
    if (!this.#connection.send(type, ...parts)) this.#hold();
  }

  #hold(): void {
    this.#blocked = true;
    this.#flow();
  }

  #wait(request: PageRequest, answer: Promise<void>): void {
    this.#waiting++;
    this.#flow();
    answer
      .catch((error: unknown) => {
        this.#explain(request, error);
      })
      .finally(() => {
        this.#waiting--;
        this.#flow();
      });
  }

  /** Reads no further request while the peer does not read, or while too many are being worked on. */
  #flow(): void {
    const pause = this.#blocked || this.#waiting >= waitingMax;
    if (pause === this.#paused) return;
    this.#paused = pause;
    if (pause) this.#connection.pause();
    else this.#connection.resume();
  }

  #explain(request: PageRequest, error: unknown): void {
    if (error instanceof TimelineError && error.code === 'corrupt') return void this.#explainDamage(request, error);
    if (error instanceof TimelineError) return this.#fail(request.requestId, error.code, error.message);
    this.#options.log.error('a page request failed', {request, error: (error as Error).stack ?? error});
    this.#fail(
      request.requestId,
      'internal',
      `${this.#timeline.state.name}: internal error: ${(error as Error).message}`,
    );
  }

  /** An object that is missing is no damage when another pageserver holds the tenant by now: it may have replaced the object. */
  async #explainDamage({requestId}: PageRequest, error: TimelineError): Promise<void> {
    const {tenantId, generation} = this.#timeline.state;
    const isLatest = await this.#options.isLatest(tenantId, generation).catch(() => true);
    if (isLatest) this.#fail(requestId, error.code, error.message);
    else this.#fail(requestId, 'not-attached', `tenant ${tenantId} is held by another pageserver than this one by now`);
  }

  #fail(requestId: number, code: PageErrorCode, message: string): void {
    this.#options.metrics.getPageErrors.inc();
    this.#send(pageFrame.error, encodePageError(requestId, code, message));
  }
}
