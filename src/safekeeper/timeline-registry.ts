/**
 * The timelines of a safekeeper: `<dataDir>/<tenant>/<timeline>/`, and marks beside: `<timeline>.deleted` for those that are
 * gone for ever, `<timeline>.excluded` for those that this node is no member of any more.
 */
import type {ObjectStore} from '#objectstore/object-store.ts';
import {WalArchive} from '#objectstore/wal-archive.ts';
import type {Clock} from '#runtime/clock.ts';
import type {Disk} from '#runtime/disk.ts';
import {failpoint} from '#runtime/failpoint.ts';
import {HttpError} from '#runtime/http.ts';
import type {Log} from '#runtime/log.ts';
import type {SafekeeperMetrics} from '#safekeeper/metrics.ts';
import {WalRecordBoundary} from '#safekeeper/record-boundary.ts';
import {SyncPace} from '#safekeeper/sync-pace.ts';
import type {AcceptorState} from '#safekeeper/acceptor.ts';
import type {PeerSnapshot} from '#safekeeper/pulled-state.ts';
import {DiskReserve} from '#safekeeper/disk-reserve.ts';
import {TimelineCopy} from '#safekeeper/timeline-copy.ts';
import {ArchiveSlots, type ArchiveTimes} from '#safekeeper/timeline-archive.ts';
import {type NewTimeline, TimelineStorage, initialState} from '#safekeeper/timeline-storage.ts';
import {type PeerNews, Timeline} from '#safekeeper/timeline.ts';

export interface TimelineRegistryOptions {
  readonly nodeId: number;
  readonly dataDir: string;
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: SafekeeperMetrics;
  readonly onProgress: (timeline: Timeline) => void;
  readonly onDiskFailure: (error: Error) => void;
  /** Without one all WAL stays on the local disk. */
  readonly archive: {readonly store: ObjectStore; readonly times: ArchiveTimes} | undefined;
  readonly peerToken: () => Promise<string>;
}

/** Objects of WAL that are put or looked for at once. */
const archiveSlots = 4;
/** A timeline whose state found no room on the disk is loaded again after this. */
const unsavedAgainMs = 5000;
const idPattern = /^[0-9a-f]{32}$/;

export class TimelineRegistry {
  readonly #options: TimelineRegistryOptions;
  readonly #loaded = new Map<string, Timeline>();
  /** `<tenant>/<timeline>` of all that are on the disk: what is not loaded costs no more memory than this. */
  readonly #known = new Set<string>();
  readonly #unseen: Set<string>;
  readonly #reserve: DiskReserve;
  readonly #syncPace = new SyncPace();
  readonly #slots = new ArchiveSlots(archiveSlots);

  constructor(options: TimelineRegistryOptions) {
    this.#options = options;
    const {disk, dataDir} = options;
    disk.makeDirectory(dataDir);
    this.#reserve = new DiskReserve(disk, dataDir);
    for (const tenantId of disk.list(dataDir).filter((name) => idPattern.test(name)))
      for (const name of disk.list(`${dataDir}/${tenantId}`))
        // Copies that were not completed, and what was on its way out.
        if (/\.(copy|going)$/.test(name)) disk.remove(`${dataDir}/${tenantId}/${name}`);
        else if (idPattern.test(name) && TimelineStorage.exists({disk, directory: `${dataDir}/${tenantId}/${name}`}))
          this.#known.add(`${tenantId}/${name}`);
    this.#unseen = new Set(this.#known);
  }

  /** All timelines of this node, loaded or not. */
  get known(): ReadonlySet<string> {
    return this.#known;
  }

  /**
   * Loads one of those that were not looked at since the start: what it has to do, a loaded timeline does. False: all were.
   */
  lookAtNext(): boolean {
    const [key] = this.#unseen;
    if (key === undefined) return false;
    this.#unseen.delete(key);
    const [tenantId, timelineId] = key.split('/') as [string, string];
    try {
      this.get(tenantId, timelineId);
    } catch (error) {
      this.#options.log.error('a timeline cannot be loaded', {
        tenant: tenantId,
        timeline: timelineId,
        error: String(error),
      });
    }
    return true;
  }

  /**
   * A peer's news; a timeline of ours that is not in memory is loaded, since it is written to. Answers the timeline when the peer
   * is behind us: one that rests here says nothing by itself.
   */
  heard(tenantId: string, timelineId: string, news: PeerNews): Timeline | undefined {
    const key = `${tenantId}/${timelineId}`;
    if (!this.#known.has(key)) return undefined;
    try {
      const timeline = this.#loaded.get(key) ?? this.get(tenantId, timelineId);
      timeline?.heard(news);
      return timeline?.isAheadOf(news) === true ? timeline : undefined;
    } catch (error) {
      this.#options.log.error('a timeline cannot be loaded', {timeline: timelineId, error: String(error)});
      return undefined;
    }
  }

  loaded(): Timeline[] {
    return [...this.#loaded.values()];
  }

  /** Undefined when it was never created here. Throws when its files are damaged: it must be replaced, not recreated. */
  get(tenantId: string, timelineId: string): Timeline | undefined {
    const key = `${tenantId}/${timelineId}`;
    const known = this.#loaded.get(key);
    if (known !== undefined) return known;
    if (!this.#known.has(key)) return undefined;
    const {disk, log, nodeId, clock, metrics, onProgress, onDiskFailure, peerToken} = this.#options;
    const storageOptions = {
      disk,
      directory: this.#directory(tenantId, timelineId),
      tenantId,
      timelineId,
      reserve: this.#reserve,
    };
    if (this.#isDeleted(tenantId, timelineId) || !TimelineStorage.exists(storageOptions)) return undefined;
    const boundary = new WalRecordBoundary();
    const timeline = new Timeline({
      nodeId,
      storage: TimelineStorage.open(storageOptions, boundary),
      boundary,
      clock,
      log: log.with({tenant: tenantId, timeline: timelineId}),
      metrics,
      syncPace: this.#syncPace,
      onProgress,
      onDiskFailure,
      onStateUnsaved: (failed) => {
        if (this.#loaded.get(key) === failed) this.#loaded.delete(key);
        failed.close();
        // It may have WAL that could be trimmed: with what is saved then, there would be space.
        clock.setTimer(unsavedAgainMs, () => this.#unseen.add(key));
      },
      archive: this.archiveOf(tenantId, timelineId),
      peerToken,
    });
    this.#loaded.set(key, timeline);
    return timeline;
  }

  /** HttpError 410 when the timeline was deleted: its id is never used again. */
  create(timeline: NewTimeline): {created: boolean; timeline: Timeline} {
    const {disk, dataDir, log} = this.#options;
    const {tenantId, timelineId} = timeline;
    this.checkNotDeleted(tenantId, timelineId);
    const existing = this.get(tenantId, timelineId);
    if (existing !== undefined) return {created: false, timeline: existing};
    if (disk.exists(this.#excludedPath(tenantId, timelineId)))
      throw new HttpError(
        410,
        'gone',
        `timeline ${timelineId} of tenant ${tenantId} has left this safekeeper: it can come back by pull only`,
      );
    disk.makeDirectory(`${dataDir}/${tenantId}`);
    disk.syncDirectory(dataDir);
    TimelineStorage.create({disk, directory: this.#directory(tenantId, timelineId)}, initialState(timeline));
    this.#known.add(`${tenantId}/${timelineId}`);
    log.info('created a timeline', {tenant: tenantId, timeline: timelineId});
    return {created: true, timeline: this.get(tenantId, timelineId)!};
  }

  /** Answers the timeline, closed, if it was in memory. */
  delete(tenantId: string, timelineId: string): Timeline | undefined {
    const {disk, dataDir, log} = this.#options;
    disk.makeDirectory(`${dataDir}/${tenantId}`);
    failpoint('safekeeper.delete-mark.before');
    // The mark first: whatever interrupts us, the timeline never comes back with half of its promises.
    disk.writeFileAtomic(this.#deletedPath(tenantId, timelineId), Buffer.alloc(0));
    failpoint('safekeeper.delete-mark.after');
    const key = `${tenantId}/${timelineId}`;
    const timeline = this.#loaded.get(key);
    timeline?.close();
    this.#loaded.delete(key);
    this.#known.delete(key);
    disk.remove(this.#directory(tenantId, timelineId));
    failpoint('safekeeper.delete-files.after');
    log.info('deleted a timeline', {tenant: tenantId, timeline: timelineId});
    return timeline;
  }

  /** The timeline has left this node's care: its files go, and it may come back by a copy from a peer only. */
  exclude(tenantId: string, timelineId: string, generation: number): void {
    const {disk, dataDir, log} = this.#options;
    const key = `${tenantId}/${timelineId}`;
    if (!this.#known.has(key)) return;
    failpoint('safekeeper.exclude-mark.before');
    disk.writeFileAtomic(this.#excludedPath(tenantId, timelineId), Buffer.from(`${generation}\n`));
    failpoint('safekeeper.exclude-mark.after');
    this.#loaded.get(key)?.close();
    this.#loaded.delete(key);
    this.#known.delete(key);
    // Not file by file in its place: a control file without its WAL must never be found.
    const going = `${this.#directory(tenantId, timelineId)}.going`;
    disk.remove(going);
    disk.rename(this.#directory(tenantId, timelineId), going);
    disk.syncDirectory(`${dataDir}/${tenantId}`);
    failpoint('safekeeper.exclude-rename.after');
    disk.remove(going);
    log.info('a timeline has left this safekeeper', {tenant: tenantId, timeline: timelineId, generation});
  }

  /** Makes a timeline with a state that is not that of a new one (restore.ts). */
  adopt(state: AcceptorState): {timeline: Timeline} {
    const {disk, dataDir, log} = this.#options;
    const {tenantId, timelineId} = state;
    this.checkNotDeleted(tenantId, timelineId);
    failpoint('safekeeper.restore.before');
    disk.makeDirectory(`${dataDir}/${tenantId}`);
    disk.syncDirectory(dataDir);
    TimelineStorage.create({disk, directory: this.#directory(tenantId, timelineId)}, state);
    failpoint('safekeeper.restore.after');
    log.info('restored a timeline from the archive', {tenant: tenantId, timeline: timelineId});
    return {timeline: this.#arrived(tenantId, timelineId)};
  }

  /**
   * Begins a copy of a peer's timeline, beside the place where it will be; `arrived` when it is complete. HttpError 410 when
   * the timeline was deleted.
   */
  beginCopy(donor: PeerSnapshot): TimelineCopy {
    const {disk, dataDir} = this.#options;
    const {tenantId, timelineId} = donor.state;
    this.checkNotDeleted(tenantId, timelineId);
    disk.makeDirectory(`${dataDir}/${tenantId}`);
    disk.syncDirectory(dataDir);
    return new TimelineCopy(
      {disk, directory: this.#directory(tenantId, timelineId), tenantId, timelineId},
      donor,
      new WalRecordBoundary(),
    );
  }

  arrived(tenantId: string, timelineId: string): void {
    this.#arrived(tenantId, timelineId);
  }

  #arrived(tenantId: string, timelineId: string): Timeline {
    this.#options.disk.remove(this.#excludedPath(tenantId, timelineId));
    this.#known.add(`${tenantId}/${timelineId}`);
    return this.get(tenantId, timelineId)!;
  }

  checkNotDeleted(tenantId: string, timelineId: string): void {
    if (this.#isDeleted(tenantId, timelineId))
      throw new HttpError(410, 'gone', `timeline ${timelineId} of tenant ${tenantId} was deleted`);
  }

  unloadIdle(afterMs: number): void {
    for (const [key, timeline] of this.#loaded) {
      if (timeline.idleMs < afterMs || timeline.hasWork) continue;
      timeline.close();
      this.#loaded.delete(key);
    }
  }

  close(): void {
    for (const timeline of this.#loaded.values()) timeline.close();
    this.#loaded.clear();
  }

  /** Undefined: this safekeeper has no object store. */
  archiveOf(
    tenantId: string,
    timelineId: string,
  ): {wal: WalArchive; slots: ArchiveSlots; times: ArchiveTimes} | undefined {
    const {archive} = this.#options;
    if (archive === undefined) return undefined;
    const {store, times} = archive;
    return {wal: new WalArchive({store, tenantId, timelineId}), slots: this.#slots, times};
  }

  #isDeleted(tenantId: string, timelineId: string): boolean {
    return this.#options.disk.exists(this.#deletedPath(tenantId, timelineId));
  }

  #excludedPath(tenantId: string, timelineId: string): string {
    return `${this.#options.dataDir}/${tenantId}/${timelineId}.excluded`;
  }

  #deletedPath(tenantId: string, timelineId: string): string {
    return `${this.#options.dataDir}/${tenantId}/${timelineId}.deleted`;
  }

  #directory(tenantId: string, timelineId: string): string {
    return `${this.#options.dataDir}/${tenantId}/${timelineId}`;
  }
}
