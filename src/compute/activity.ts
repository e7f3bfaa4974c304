/**
 * When was this Postgres last of use to somebody? One cheap query every few seconds, from one session that stays open; the
 * control plane asks for the answer and suspends the endpoint when it is old enough.
 *
 * Activity is (docs/operating.md tells users the same):
 *  - a session that runs a statement or holds a transaction open, now or since the last look;
 *  - a session that was opened, however short it was (pg_stat_database counts them);
 *  - somebody who replicates from here (a walsender other than the proposer), and a subscription's worker;
 *  - a vacuum by autovacuum that takes longer than a moment.
 * Not activity: an idle session, also one behind a proxy or a pool; LISTEN by itself, as at Neon: notifications come from
 * sessions that do something, and these keep the compute awake; what the agent and the proposer do.
 */
import type pg from 'pg';
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import {connectAdmin, type PostgresAddress} from '#compute/catalog.ts';
import {adminRole} from '#compute/postgres-settings.ts';

const lookEveryMs = 3000;

const query = {
  name: 'pagoda-activity',
  text: `
    select (select coalesce(sum(sessions), 0)::float8 from pg_stat_database) as sessions,
           count(*) filter (where backend_type = 'client backend' and state is distinct from 'idle'
                               or backend_type in ('walsender', 'logical replication worker')
                               or backend_type = 'autovacuum worker' and backend_start < now() - interval '5 s')::int as busy,
           extract(epoch from max(state_change) filter (where backend_type = 'client backend'))::float8 as changed
      from pg_stat_activity
     where pid <> pg_backend_pid() and usename is distinct from '${adminRole}'`,
};

export class ActivityWatch {
  readonly #address: PostgresAddress;
  readonly #clock: Clock;
  readonly #log: Log;
  #lastActiveMs: number;
  #sessions: number | undefined;
  #client: pg.Client | undefined;
  #looking: Promise<void> | undefined;
  #timer: Timer | undefined;
  #stopped = false;

  constructor(options: {address: PostgresAddress; clock: Clock; log: Log}) {
    this.#address = options.address;
    this.#clock = options.clock;
    this.#log = options.log;
    // Who woke it is on the way.
    this.#lastActiveMs = options.clock.nowMs();
    this.#schedule();
  }

  /** Milliseconds since 1970; right to the last look, which is seconds old at most. */
  get lastActiveMs(): number {
    return this.#lastActiveMs;
  }

  /** Looks now. A Postgres that does not answer counts as active: nothing is known. */
  look(): Promise<void> {
    return (this.#looking ??= this.#look().finally(() => (this.#looking = undefined)));
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
    this.#client?.end().catch(() => {});
    this.#client = undefined;
  }

  #schedule(): void {
    if (this.#stopped) return;
    this.#timer = this.#clock.setTimer(lookEveryMs, () => void this.look().then(() => this.#schedule()));
  }

  async #look(): Promise<void> {
    try {
      this.#client ??= await connectAdmin(this.#address);
      const {rows} = await this.#client.query<{sessions: number; busy: number; changed: number | null}>(query);
      const {sessions, busy, changed} = rows[0]!;
      const nowMs = this.#clock.nowMs();
      if (busy > 0 || (this.#sessions !== undefined && sessions !== this.#sessions)) this.#lastActiveMs = nowMs;
      // Postgres runs on this machine: its clock is ours.
      else if (changed !== null) this.#lastActiveMs = Math.max(this.#lastActiveMs, changed * 1000);
      this.#sessions = sessions;
    } catch (error) {
      this.#lastActiveMs = this.#clock.nowMs();
      this.#client?.end().catch(() => {});
      this.#client = undefined;
      if (!this.#stopped) this.#log.warn('the activity of Postgres could not be looked at', {error});
    }
  }
}
