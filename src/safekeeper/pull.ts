/** Brings a timeline to a node that is to become a member: copies what a peer has (wire/membership.ts, POST pull). */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {Clock} from '#runtime/clock.ts';
import {failpoint} from '#runtime/failpoint.ts';
import {HttpError} from '#runtime/http.ts';
import type {Log} from '#runtime/log.ts';
import {type PeerState, askPeerState} from '#safekeeper/peer-state.ts';
import type {TimelineCopy} from '#safekeeper/timeline-copy.ts';
import type {TimelineRegistry} from '#safekeeper/timeline-registry.ts';
import {mayPull} from '#wire/membership.ts';
import type {Member, Membership} from '#wire/safekeeper.ts';
import {WalStreamClient} from '#wire/wal-stream.ts';

/** The donor's log may change under the copy: then it is begun anew, so often. */
const triesMax = 5;
const silenceMs = 10_000;
/** WAL that is received and not yet durable, at most. */
const unflushedBytesMax = 16 * 1024 * 1024;

export interface PullOptions {
  readonly registry: TimelineRegistry;
  readonly nodeId: number;
  readonly token: () => Promise<string>;
  readonly clock: Clock;
  readonly log: Log;
  readonly tenantId: string;
  readonly timelineId: string;
  /** The configuration now; this node is not in it. */
  readonly membership: Membership;
  readonly from: readonly Member[];
}

/** Copies that are under way: who asks again waits for the same. */
const running = new WeakMap<TimelineRegistry, Map<string, Promise<void>>>();

/** HttpError 409 'not-pullable' for a member, 410 for a deleted timeline, 503 when no peer could be copied from. */
export async function pullTimeline(options: PullOptions): Promise<void> {
  const {registry, nodeId, membership, tenantId, timelineId} = options;
  if (!mayPull(membership, nodeId))
    throw new HttpError(
      409,
      'not-pullable',
      `safekeeper ${nodeId} is a member: it may have promised what it has forgotten. Replace it by another node, or let it leave first`,
    );
  registry.checkNotDeleted(tenantId, timelineId);
  let ofRegistry = running.get(registry);
  if (ofRegistry === undefined) running.set(registry, (ofRegistry = new Map()));
  const key = `${tenantId}/${timelineId}`;
  let copy = ofRegistry.get(key);
  if (copy === undefined) {
    copy = pull(options).finally(() => ofRegistry.delete(key));
    ofRegistry.set(key, copy);
  }
  await copy;
}

async function pull(options: PullOptions): Promise<void> {
  const {log, from, timelineId} = options;
  const reasons: string[] = [];
  for (const donor of from) {
    try {
      for (let tries = 1; !(await copyFrom(options, donor)); tries++)
        if (tries === triesMax) throw new Error('its log has changed again and again under the copy');
      return;
    } catch (error) {
      if (error instanceof HttpError) throw error;
      const reason = `safekeeper ${donor.nodeId}: ${error instanceof Error ? error.message : String(error)}`;
      log.warn('a timeline could not be copied', {timeline: timelineId, reason});
      reasons.push(reason);
    }
  }
  throw new HttpError(
    503,
    'no_donor',
    `timeline ${timelineId} could not be copied from anybody: ${reasons.join('; ')}`,
  );
}

/** False: begin anew. */
async function copyFrom(options: PullOptions, donor: Member): Promise<boolean> {
  const {registry, token, clock, log, tenantId, timelineId, membership} = options;
  const ask = async (): Promise<PeerState> =>
    await askPeerState({address: donor, token: await token(), tenantId, timelineId, clock});
  const before = await ask();
  failpoint('safekeeper.pull.before');
  const copy = registry.beginCopy(before);
  try {
    if (copy.nextLsn < copy.endLsn) await copyWal(options, before, copy, await token());
    await flush(copy);
    failpoint('safekeeper.pull-wal.after');
    if (!copy.complete(await ask(), membership)) return false;
    failpoint('safekeeper.pull.after');
  } catch (error) {
    copy.abandon();
    throw error;
  }
  registry.arrived(tenantId, timelineId);
  log.info('copied a timeline', {
    tenant: tenantId,
    timeline: timelineId,
    from: donor.nodeId,
    flushLsn: formatLsn(before.flushLsn),
  });
  return true;
}

async function copyWal(options: PullOptions, donor: PeerState, copy: TimelineCopy, token: string): Promise<void> {
  const {clock, tenantId, timelineId} = options;
  let failure: Error | undefined;
  let heardMs = clock.monotonicMs();
  let flushedLsn: Lsn = copy.nextLsn;
  const stream = await WalStreamClient.connect({
    address: donor.address,
    token,
    tenantId,
    timelineId,
    startLsn: copy.nextLsn,
    copy: true,
    onWal: (lsn, bytes) => {
      heardMs = clock.monotonicMs();
      if (failure !== undefined || lsn >= copy.endLsn) return;
      try {
        copy.write(lsn, bytes.subarray(0, copy.endLsn - lsn));
      } catch (error) {
        failure = error as Error;
      }
      if (copy.nextLsn - flushedLsn > unflushedBytesMax) stream.pause();
    },
    onKeepalive: () => {
      heardMs = clock.monotonicMs();
    },
    onClose: (reason) => {
      failure ??= reason ?? new Error('closed');
    },
  });
  try {
    while (copy.nextLsn < copy.endLsn) {
      if (failure !== undefined) throw failure;
      if (clock.monotonicMs() - heardMs > silenceMs) throw new Error('it is silent');
      if (copy.nextLsn - flushedLsn > unflushedBytesMax) {
        const upTo = copy.nextLsn;
        await flush(copy);
        flushedLsn = upTo;
        heardMs = clock.monotonicMs();
        stream.resume();
      }
      await clock.sleep(5);
    }
  } finally {
    stream.close();
  }
}

async function flush(copy: TimelineCopy): Promise<void> {
  await Promise.all(copy.beginSync().map(async (file) => file.sync()));
  copy.endSync();
}
