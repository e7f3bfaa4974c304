/** Idle SQL sessions for HTTP requests, by endpoint, role, database and options. A session that has seen an error is not kept. */
import type {Clock, Timer} from '#runtime/clock.ts';
import type {SqlSession} from '#proxy/sql-session.ts';

const idleMsMax = 60_000;
const idlePerKeyMax = 20;

interface Idle {
  readonly session: SqlSession;
  readonly expiry: Timer;
}

export class SqlPool {
  readonly #clock: Clock;
  readonly #idle = new Map<string, Idle[]>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  take(key: string): SqlSession | undefined {
    const list = this.#idle.get(key);
    for (let entry = list?.pop(); entry !== undefined; entry = list?.pop()) {
      entry.expiry.cancel();
      if (entry.session.usable) return entry.session;
    }
    return undefined;
  }

  /** `session` holds no state of its last user any more. */
  put(key: string, session: SqlSession): void {
    let list = this.#idle.get(key);
    if (!list) this.#idle.set(key, (list = []));
    if (!session.usable || list.length >= idlePerKeyMax) {
      session.close();
      return;
    }
    const expiry = this.#clock.setTimer(idleMsMax, () => {
      list.splice(list.indexOf(entry), 1);
      if (list.length === 0 && this.#idle.get(key) === list) this.#idle.delete(key);
      session.close();
    });
    const entry = {session, expiry};
    session.rest();
    list.push(entry);
  }

  closeAll(): void {
    for (const list of this.#idle.values()) {
      for (const {session, expiry} of list) {
        expiry.cancel();
        session.close();
      }
    }
    this.#idle.clear();
  }
}
