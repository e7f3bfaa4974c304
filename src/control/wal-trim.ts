/**
 * WAL in the object store that nobody needs any more goes. The pageservers of a branch say from where it is needed (its restore
 * window, leases, what is not in layers yet); one safekeeper is told, and removes whole segments below. Both may be repeated, so
 * nothing is kept of it but what was done since the start.
 */
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import {formatLsn, type Lsn} from '#control/lsn.ts';
import {whereIs} from '#control/operations/plan-context.ts';
import type {StorageClients} from '#control/storage-client.ts';
import type {Store} from '#control/store/schema.ts';
import {TenantPages} from '#control/tenant-pages.ts';

const everySecondsDefault = 600;
/** A segment: what is asked for less often than that is worth no request. */
const worthBytes = 16 * 1024 * 1024;

export interface WalTrimConfig {
  /** How often all branches are looked at; -1: never. Default 10 minutes. */
  readonly everySeconds?: number;
}

export interface WalTrimOptions {
  readonly store: Store;
  readonly storage: StorageClients;
  readonly clock: Clock;
  readonly log: Log;
  readonly config: WalTrimConfig | undefined;
}

export class WalTrim {
  readonly #options: WalTrimOptions;
  readonly #everyMs: number;
  /** Timeline → what a safekeeper was told last. */
  readonly #told = new Map<string, Lsn>();
  #timer: Timer | undefined;
  #sweeping = Promise.resolve();
  #stopped = false;

  constructor(options: WalTrimOptions) {
    this.#options = options;
    this.#everyMs = (options.config?.everySeconds ?? everySecondsDefault) * 1000;
  }

  start(): void {
    if (this.#stopped || this.#everyMs < 0) return;
    const {clock, log} = this.#options;
    this.#timer = clock.setTimer(this.#everyMs, () => {
      this.#sweeping = this.sweep()
        .catch((error: unknown) => log.error('branches with WAL to trim could not be looked for', {error}))
        .then(() => this.start());
    });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    await this.#sweeping;
  }

  /** One branch after the other: nothing is in a hurry here. */
  async sweep(): Promise<void> {
    const {store, log} = this.#options;
    const branches = await store
      .selectFrom('branches')
      .select(['id', 'timeline_id'])
      .where('deleted_at', 'is', null)
      .where('state', 'in', ['ready', 'archived'])
      .execute();
    const timelines = new Set(branches.map((branch) => branch.timeline_id));
    for (const timelineId of this.#told.keys()) if (!timelines.has(timelineId)) this.#told.delete(timelineId);
    for (const {id} of branches) {
      if (this.#stopped) return;
      await this.#trim(id).catch((error: unknown) => log.warn('WAL of a branch is not trimmed', {branch: id, error}));
    }
  }

  async #trim(branchId: string): Promise<void> {
    const {store, storage, log} = this.#options;
    const {project, branch, safekeeperSet} = await whereIs(store, branchId);
    const {tenant_id: tenantId} = project;
    const {timeline_id: timelineId} = branch;
    const info = await new TenantPages(this.#options, tenantId).timeline(timelineId);
    const needed = info?.walNeededLsn;
    if (needed === undefined || needed < (this.#told.get(timelineId) ?? 0) + worthBytes) return;
    let problem: unknown;
    for (const nodeId of safekeeperSet.members) {
      try {
        const trimmed = await storage.safekeeper(nodeId).trimArchive(tenantId, timelineId, needed);
        this.#told.set(timelineId, needed);
        log.debug('archived WAL trimmed', {
          timeline: timelineId,
          needed: formatLsn(needed),
          trimmed: formatLsn(trimmed),
        });
        return;
      } catch (error) {
        problem = error;
      }
    }
    throw problem;
  }
}
