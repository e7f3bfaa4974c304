/** The unix socket on which the extension asks for the base pages of this compute (protocol: wire/hydration.ts). */
import {type RelTag, blockSize} from '#postgres/relation.ts';
import type {Log} from '#runtime/log.ts';
import type {Counter, Histogram, Metrics} from '#runtime/metrics.ts';
import {systemClock} from '#runtime/clock.ts';
import {type Listener, type Socket, listenSockets} from '#runtime/net.ts';
import {type HydrationListEntry, HydrationSession, type HydrationSource} from '#wire/hydration.ts';
import type {PageRun} from '#wire/pages.ts';

export class HydrationServer {
  readonly #listener: Listener;
  readonly #counted: CountedSource;

  private constructor(listener: Listener, counted: CountedSource) {
    this.#listener = listener;
    this.#counted = counted;
  }

  static async start(options: {
    path: string;
    pages: HydrationSource;
    log: Log;
    metrics: Metrics;
  }): Promise<HydrationServer> {
    const counted = new CountedSource(options.pages, options.metrics);
    const listener = await listenSockets({path: options.path}, (socket) => serveBackend(socket, counted, options.log));
    return new HydrationServer(listener, counted);
  }

  /** Since this server started. */
  get pagesFetched(): number {
    return this.#counted.pagesFetched;
  }

  close(): Promise<void> {
    return this.#listener.close();
  }
}

function serveBackend(socket: Socket, source: HydrationSource, log: Log): void {
  const session = new HydrationSession(source, (parts, onWritten) => {
    socket.cork();
    for (const [i, part] of parts.entries())
      socket.write(part, i === parts.length - 1 && onWritten !== undefined ? () => onWritten() : undefined);
    socket.uncork();
  });
  socket.on('data', (chunk: Buffer) => {
    try {
      session.receive(chunk);
    } catch (error) {
      log.error('a peer on the hydration socket does not speak its protocol; closing', {error});
      socket.destroy();
    }
  });
  socket.on('error', () => {}); // a backend that ended; `close` follows
  socket.on('close', () => session.close());
}

/** Adds counting to a source. */
class CountedSource implements HydrationSource {
  readonly #source: HydrationSource;
  readonly #pages: Counter;
  readonly #sizes: Counter;
  readonly #seconds: Histogram;
  #pagesAtStart: number;

  constructor(source: HydrationSource, metrics: Metrics) {
    this.#source = source;
    this.#pages = metrics.counter('pagoda_compute_pages_fetched_total', 'Pages that Postgres asked storage for.');
    this.#sizes = metrics.counter(
      'pagoda_compute_size_requests_total',
      'Relation sizes that Postgres asked storage for.',
    );
    this.#seconds = metrics.histogram(
      'pagoda_compute_fetch_seconds',
      'From a request on the hydration socket to its answer.',
    );
    this.#pagesAtStart = this.#pages.value();
  }

  get pagesFetched(): number {
    return this.#pages.value() - this.#pagesAtStart;
  }

  relSize(rel: RelTag): Promise<number | undefined> {
    this.#sizes.inc();
    return this.#timed(this.#source.relSize(rel));
  }

  async getPages(rel: RelTag, block: number, count: number, packed = false): Promise<PageRun> {
    const run = await this.#timed(this.#source.getPages(rel, block, count, packed));
    this.#pages.inc(run.packedPages ?? run.bytes.length / blockSize);
    return run;
  }

  listDb(spcNode: number, dbNode: number): Promise<readonly HydrationListEntry[]> {
    return this.#timed(this.#source.listDb(spcNode, dbNode));
  }

  dbSize(dbNode: number): Promise<number | undefined> {
    return this.#timed(this.#source.dbSize(dbNode));
  }

  async #timed<T>(answer: Promise<T>): Promise<T> {
    const started = systemClock.monotonicMs();
    const value = await answer;
    this.#seconds.observe((systemClock.monotonicMs() - started) / 1000);
    return value;
  }
}
