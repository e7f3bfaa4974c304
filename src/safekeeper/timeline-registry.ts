/** The timelines of a safekeeper: `<dataDir>/<tenant>/<timeline>/`, and `<timeline>.deleted` for those that are gone. */
import type {Clock} from '#runtime/clock.ts';
import type {Disk} from '#runtime/disk.ts';
import {failpoint} from '#runtime/failpoint.ts';
import {HttpError} from '#runtime/http.ts';
import type {Log} from '#runtime/log.ts';
import type {SafekeeperMetrics} from '#safekeeper/metrics.ts';
import {WalRecordBoundary} from '#safekeeper/record-boundary.ts';
import {type NewTimeline, TimelineStorage, initialState} from '#safekeeper/timeline-storage.ts';
import {Timeline} from '#safekeeper/timeline.ts';

export interface TimelineRegistryOptions {
  readonly nodeId: number;
  readonly dataDir: string;
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: SafekeeperMetrics;
  readonly onProgress: (timeline: Timeline) => void;
  readonly onDiskFailure: (error: Error) => void;
}

export class TimelineRegistry {
  readonly #options: TimelineRegistryOptions;
  readonly #loaded = new Map<string, Timeline>();

  constructor(options: TimelineRegistryOptions) {
    this.#options = options;
    options.disk.makeDirectory(options.dataDir);
  }

  loaded(): Timeline[] {
    return [...this.#loaded.values()];
  }

  /** Undefined when it was never created here. Throws when its files are damaged: it must be replaced, not recreated. */
  get(tenantId: string, timelineId: string): Timeline | undefined {
    const key = `${tenantId}/${timelineId}`;
    const known = this.#loaded.get(key);
    if (known !== undefined) return known;
    const {disk, log, nodeId, clock, metrics, onProgress, onDiskFailure} = this.#options;
    const storageOptions = {disk, directory: this.#directory(tenantId, timelineId)};
    if (this.#isDeleted(tenantId, timelineId) || !TimelineStorage.exists(storageOptions)) return undefined;
    const boundary = new WalRecordBoundary();
    const timeline = new Timeline({
      nodeId,
      storage: TimelineStorage.open(storageOptions, boundary),
      boundary,
      clock,
      log: log.with({tenant: tenantId, timeline: timelineId}),
      metrics,
      onProgress,
      onDiskFailure,
      onStateUnsaved: (failed) => {
        if (this.#loaded.get(key) === failed) this.#loaded.delete(key);
        failed.close();
      },
    });
    this.#loaded.set(key, timeline);
    return timeline;
  }

  /** HttpError 410 when the timeline was deleted: its id is never used again. */
  create(timeline: NewTimeline): {created: boolean; timeline: Timeline} {
    const {disk, dataDir, log} = this.#options;
    const {tenantId, timelineId} = timeline;
    if (this.#isDeleted(tenantId, timelineId))
      throw new HttpError(410, 'gone', `timeline ${timelineId} of tenant ${tenantId} was deleted`);
    const existing = this.get(tenantId, timelineId);
    if (existing !== undefined) return {created: false, timeline: existing};
    disk.makeDirectory(`${dataDir}/${tenantId}`);
    disk.syncDirectory(dataDir);
    TimelineStorage.create({disk, directory: this.#directory(tenantId, timelineId)}, initialState(timeline));
    log.info('created a timeline', {tenant: tenantId, timeline: timelineId});
    return {created: true, timeline: this.get(tenantId, timelineId)!};
  }

  delete(tenantId: string, timelineId: string): void {
    const {disk, dataDir, log} = this.#options;
    disk.makeDirectory(`${dataDir}/${tenantId}`);
    failpoint('safekeeper.delete-mark.before');
    // The mark first: whatever interrupts us, the timeline never comes back with half of its promises.
    disk.writeFileAtomic(this.#deletedPath(tenantId, timelineId), Buffer.alloc(0));
    failpoint('safekeeper.delete-mark.after');
    const key = `${tenantId}/${timelineId}`;
    this.#loaded.get(key)?.close();
    this.#loaded.delete(key);
    disk.remove(this.#directory(tenantId, timelineId));
    failpoint('safekeeper.delete-files.after');
    log.info('deleted a timeline', {tenant: tenantId, timeline: timelineId});
  }

  unloadIdle(afterMs: number): void {
    for (const [key, timeline] of this.#loaded) {
      if (timeline.idleMs < afterMs) continue;
      timeline.close();
      this.#loaded.delete(key);
    }
  }

  close(): void {
    for (const timeline of this.#loaded.values()) timeline.close();
    this.#loaded.clear();
  }

  #isDeleted(tenantId: string, timelineId: string): boolean {
    return this.#options.disk.exists(this.#deletedPath(tenantId, timelineId));
  }

  #deletedPath(tenantId: string, timelineId: string): string {
    return `${this.#options.dataDir}/${tenantId}/${timelineId}.deleted`;
  }

  #directory(tenantId: string, timelineId: string): string {
    return `${this.#options.dataDir}/${tenantId}/${timelineId}`;
  }
}
