/** Connections to one database as one role, lent to clients for a transaction each. */
import type {Clock, Timer} from '#runtime/clock.ts';
import {ComputeRefused} from '#proxy/compute-login.ts';
import {proxyErrors} from '#proxy/errors.ts';
import {ServerConnection} from '#proxy/pooler/server-connection.ts';
import {StatementNames} from '#proxy/pooler/statements.ts';
import type {Reached} from '#proxy/reach-compute.ts';

/** 90 % of the connections that a compute has for its users (as Neon's default_pool_size). */
export const serversPerPoolMax = 93;
/** As PgBouncer's query_wait_timeout. */
const waitMsMax = 120_000;
const idleMsMax = 60_000;

interface Waiter {
  readonly take: (server: ServerConnection) => void;
  readonly fail: (error: Error) => void;
  readonly timer: Timer;
}

export class Pool {
  readonly names = new StatementNames();
  #parameters: ReadonlyMap<string, string> | undefined;
  #asking: Promise<ReadonlyMap<string, string>> | undefined;
  /** Logs in at the compute, waking it when needed: with the keys of the client that came last. */
  connect: () => Promise<Reached>;
  readonly #clock: Clock;
  readonly #serversMax: number;
  readonly #idle: {server: ServerConnection; expiry: Timer}[] = [];
  readonly #waiting: Waiter[] = [];
  #servers = 0;
  #connecting = 0;

  constructor(options: {connect: () => Promise<Reached>; clock: Clock; serversMax: number}) {
    this.connect = options.connect;
    this.#clock = options.clock;
    this.#serversMax = options.serversMax;
  }

  /** Nothing is open, being opened or waited for. */
  get empty(): boolean {
    return this.#servers === 0 && this.#connecting === 0 && this.#waiting.length === 0;
  }

  /** As the last server reported them at its start. Many clients that come first wait for one server. Rejects as `acquire`. */
  parameters(): Promise<ReadonlyMap<string, string>> {
    if (this.#parameters !== undefined) return Promise.resolve(this.#parameters);
    this.#asking ??= this.acquire()
      .then((server) => {
        this.release(server);
        return this.#parameters!;
      })
      .finally(() => (this.#asking = undefined));
    return this.#asking;
  }

  /** A server for one transaction, in the order of asking. Rejects with a ProxyError or ComputeRefused. */
  acquire(): Promise<ServerConnection> {
    for (let idle = this.#idle.pop(); idle !== undefined; idle = this.#idle.pop()) {
      idle.expiry.cancel();
      if (!idle.server.gone) return Promise.resolve(idle.server);
    }
    return new Promise((take, fail) => {
      const timer = this.#clock.setTimer(waitMsMax, () => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        fail(proxyErrors.poolBusy(waitMsMax / 1000));
      });
      const waiter: Waiter = {take, fail, timer};
      this.#waiting.push(waiter);
      this.#grow();
    });
  }

  /** Gives it back, outside a transaction. What was set in its session is undone first. */
  release(server: ServerConnection): void {
    server.use(undefined);
    if (server.memory.leftover === 'nothing') this.#offer(server);
    else
      server.clean().then(
        () => this.#offer(server),
        () => server.close(),
      );
  }

  close(): void {
    for (const {server, expiry} of this.#idle.splice(0)) {
      expiry.cancel();
      server.close();
    }
  }

  #offer(server: ServerConnection): void {
    if (server.gone) return;
    const waiter = this.#waiting.shift();
    if (waiter !== undefined) {
      waiter.timer.cancel();
      waiter.take(server);
      return;
    }
    const idle = {
      server,
      expiry: this.#clock.setTimer(idleMsMax, () => {
        this.#idle.splice(this.#idle.indexOf(idle), 1);
        server.close();
      }),
    };
    this.#idle.push(idle);
  }

  #grow(): void {
    while (this.#connecting < this.#waiting.length && this.#servers + this.#connecting < this.#serversMax) {
      this.#connecting++;
      this.connect().then(
        (reached) => {
          this.#connecting--;
          this.#servers++;
          const server = new ServerConnection(reached, () => {
            this.#servers--;
            this.#grow();
          });
          this.#parameters = new Map(server.memory.parameters);
          this.#offer(server);
        },
        (error: Error) => {
          this.#connecting--;
          // The compute is full (53300): the servers we have come back.
          if (error instanceof ComputeRefused && error.sqlState === '53300' && this.#servers > 0) return;
          const waiter = this.#waiting.shift();
          waiter?.timer.cancel();
          waiter?.fail(error);
        },
      );
    }
  }
}
