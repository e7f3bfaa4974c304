/**
 * Archived WAL of all timelines in the object store: is every object what was written, does WAL follow on WAL, and whose is it. With
 * a copy of the store, what is damaged or missing is put back. Nothing that nobody knows is deleted here.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {ObjectStoreError} from '#objectstore/object-store.ts';
import {WalArchive, WalArchiveError, type WalPiece} from '#objectstore/wal-archive.ts';
import {chain} from '#safekeeper/restore.ts';

export interface WalScrubFinding {
  /** dangling: WAL goes on behind it, it is not there. damaged: not what was written. orphan: no branch has this WAL. */
  readonly kind: 'dangling' | 'damaged' | 'orphan';
  readonly object: string;
  readonly reason: string;
  readonly repaired: boolean;
}

export interface WalScrubReport {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly objects: number;
  readonly bytes: number;
  readonly findings: readonly WalScrubFinding[];
}

export interface WalScrubOptions {
  readonly store: ObjectStore;
  /** Another store with the same names. */
  readonly copy?: ObjectStore | undefined;
  /** The timelines that branches have, as `<tenant>/<timeline>`; asked after the objects were listed. */
  readonly timelines: () => Promise<ReadonlySet<string>>;
  readonly segmentSize?: number;
}

/** One report for each timeline that has archived WAL. Rejects when the store does not answer. */
export async function scrubWal(options: WalScrubOptions): Promise<WalScrubReport[]> {
  const {store, copy, segmentSize} = options;
  const listed = (await store.list('wal/')).map(({key, size}) => ({
    size,
    timeline: key.split('/').slice(1, 3).join('/'),
  }));
  const known = await options.timelines();
  const reports: WalScrubReport[] = [];
  for (const [timeline, objects] of Map.groupBy(listed, (object) => object.timeline)) {
    const [tenantId = '', timelineId = ''] = timeline.split('/');
    const size = objects.reduce((sum, object) => sum + object.size, 0);
    const report = {tenantId, timelineId, objects: objects.length, bytes: size};
    if (!known.has(timeline)) {
      const reason = `${objects.length} objects, ${size} bytes, of a timeline that no branch has; if none of its safekeepers is still being waited for (pagoda safekeepers operations), delete what begins with this name`;
      reports.push({...report, findings: [{kind: 'orphan', object: `wal/${timeline}/`, reason, repaired: false}]});
      continue;
    }
    const of = (from: ObjectStore): WalArchive =>
      new WalArchive({store: from, tenantId, timelineId, ...(segmentSize === undefined ? {} : {segmentSize})});
    const findings = await scrubTimeline(store, of(store), copy, copy === undefined ? undefined : of(copy));
    reports.push({...report, findings});
  }
  return reports;
}

async function scrubTimeline(
  store: ObjectStore,
  archive: WalArchive,
  copyStore: ObjectStore | undefined,
  copy: WalArchive | undefined,
): Promise<WalScrubFinding[]> {
  const findings: WalScrubFinding[] = [];
  /** The copy's bytes of an object that it has whole. */
  const put = async (piece: WalPiece): Promise<boolean> => {
    if (copyStore === undefined || copy === undefined) return false;
    try {
      await copy.get(piece);
      const key = archive.key(piece);
      const bytes = await copyStore.get(key);
      await store.delete([key]);
      await store.put(key, bytes, {ifNoneMatch: '*'});
      await archive.get(piece);
      return true;
    } catch (error) {
      if (error instanceof WalArchiveError || error instanceof ObjectStoreError) return false;
      throw error;
    }
  };
  const pieces = await archive.list();
  for (const piece of pieces)
    try {
      await archive.get(piece);
    } catch (error) {
      // Trimmed, or replaced by a longer one, since it was listed; the chain below says whether it is missed.
      if (error instanceof ObjectStoreError && error.code === 'not-found') continue;
      if (!(error instanceof WalArchiveError)) throw error;
      findings.push({kind: 'damaged', object: archive.key(piece), reason: error.message, repaired: await put(piece)});
    }
  try {
    const manifest = await archive.manifest();
    const now = await archive.list();
    if (manifest === undefined) {
      const reason = 'is missing: without it the branch cannot be restored from its archived WAL';
      if (now.length > 0)
        findings.push({kind: 'dangling', object: `${archive.prefix}term-…json`, reason, repaired: false});
      return findings;
    }
    const firstLsn = await archive.firstLsn(manifest);
    const furthest = now.reduce((most, {endLsn}) => Math.max(most, endLsn), 0);
    for (let at = endOf(now, firstLsn); at < furthest;) {
      const next = (await copy?.list())?.find(({startLsn, endLsn}) => startLsn <= at && at < endLsn);
      const repaired = next !== undefined && (await put(next));
      findings.push({
        kind: 'dangling',
        object: next === undefined ? archive.prefix : archive.key(next),
        reason: `WAL behind ${formatLsn(at)} is missing, but there is some up to ${formatLsn(furthest as Lsn)}`,
        repaired,
      });
      if (!repaired) break;
      at = endOf(await archive.list(), firstLsn);
    }
  } catch (error) {
    if (!(error instanceof WalArchiveError)) throw error;
    findings.push({kind: 'damaged', object: archive.prefix, reason: error.message, repaired: false});
  }
  return findings;
}

/** Up to where WAL is there without a gap. */
function endOf(pieces: readonly WalPiece[], firstLsn: Lsn): Lsn {
  return chain(pieces, firstLsn).at(-1)?.endLsn ?? firstLsn;
}
