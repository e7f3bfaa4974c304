/** A timeline from nothing but the archive: for the day when all its safekeepers have lost their disks. */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {HttpError} from '#runtime/http.ts';
import {type WalArchive, WalArchiveError, type WalManifest, type WalPiece} from '#objectstore/wal-archive.ts';
import type {AcceptorState} from '#safekeeper/acceptor.ts';
import {termAt} from '#safekeeper/archiver.ts';
import {WalRecordBoundary, feedAcrossTerms} from '#safekeeper/record-boundary.ts';
import {firstRecordStart} from '#safekeeper/record-start.ts';
import {cutHistory} from '#safekeeper/term-history.ts';
import type {Membership} from '#wire/safekeeper.ts';

export interface RestorePoint {
  readonly manifest: WalManifest;
  /** From here on WAL is kept: where the timeline begins, or up to where it was trimmed. */
  readonly firstLsn: Lsn;
  /** WAL is there without a gap up to here; may lie inside a record. */
  readonly archivedLsn: Lsn;
  /** The end of the last whole record: where a branch that is restored goes on. */
  readonly restoreLsn: Lsn;
  readonly objects: number;
  readonly bytes: number;
}

/** Undefined: nothing of the timeline was ever archived. */
export async function readRestorePoint(archive: WalArchive): Promise<RestorePoint | undefined> {
  const manifest = await archive.manifest();
  if (manifest === undefined) return undefined;
  const firstLsn = await archive.firstLsn(manifest);
  const listed = await archive.list();
  const pieces = chain(listed, firstLsn);
  if (pieces.length === 0 && listed.length > 0)
    throw new WalArchiveError(
      `archived WAL of timeline ${manifest.timelineId} (tenant ${manifest.tenantId}) should begin at ${formatLsn(firstLsn)}, but what is there begins at ${formatLsn(listed[0]!.startLsn)}; look with \`pagoda wal fsck\``,
    );
  const archivedLsn = pieces.at(-1)?.endLsn ?? firstLsn;
  return {
    manifest,
    firstLsn,
    archivedLsn,
    restoreLsn: await lastRecordEnd(archive, manifest, pieces),
    objects: pieces.length,
    bytes: pieces.reduce((sum, piece) => sum + piece.endLsn - piece.startLsn, 0),
  };
}

/**
 * The state of a member of the restored timeline: all WAL is in the archive and committed, none is local. What the archive
 * holds of a record that is not whole is cut off there, since another one will be written in its place. HttpError 404 when
 * nothing was archived.
 */
export async function restoreState(
  archive: WalArchive,
  membership: Membership,
  atLsn: Lsn | undefined,
): Promise<AcceptorState> {
  const point = await readRestorePoint(archive);
  if (point === undefined) throw new HttpError(404, 'not_found', 'nothing of this timeline is in the object store');
  const {manifest, archivedLsn, restoreLsn} = point;
  if (atLsn !== undefined && atLsn < restoreLsn)
    throw new HttpError(
      409,
      'conflict',
      `the archive holds committed WAL up to ${formatLsn(restoreLsn)}, later than ${formatLsn(atLsn)}`,
    );
  const lsn = atLsn ?? restoreLsn;
  const {term} = manifest.history.at(-1)!;
  if (restoreLsn < archivedLsn) await archive.cutAt(restoreLsn, termAt(manifest.history, restoreLsn));
  const hasGap = lsn > restoreLsn;
  return {
    tenantId: manifest.tenantId,
    timelineId: manifest.timelineId,
    systemId: manifest.systemId,
    pgVersion: manifest.pgVersion,
    // WAL between the archive's end and `lsn` is lost as WAL; pageservers have its pages.
    startLsn: hasGap ? lsn : manifest.startLsn,
    membership,
    term,
    history: hasGap ? [{term: 0, lsn}] : cutHistory(manifest.history, lsn),
    commitLsn: lsn,
    remoteConsistentLsn: 0 as Lsn,
    archivedLsn: lsn,
    localStartLsn: lsn,
  };
}

/** The longest piece of each segment from the start on, as long as they follow one another. */
export function chain(pieces: readonly WalPiece[], startLsn: Lsn): WalPiece[] {
  const longest = new Map<number, WalPiece>();
  for (const piece of pieces) {
    const known = longest.get(piece.segment);
    if (known === undefined || piece.endLsn > known.endLsn) longest.set(piece.segment, piece);
  }
  const found: WalPiece[] = [];
  let at = startLsn;
  for (const piece of [...longest.values()].sort((a, b) => a.segment - b.segment)) {
    if (piece.endLsn <= at) continue;
    if (piece.startLsn > at) break;
    found.push(piece);
    at = piece.endLsn;
  }
  return found;
}

/** Reads from the last segment back until one holds the start of a record. */
async function lastRecordEnd(archive: WalArchive, manifest: WalManifest, pieces: readonly WalPiece[]): Promise<Lsn> {
  const read: Buffer[] = [];
  for (let i = pieces.length - 1; i >= 0; i--) {
    const piece = pieces[i]!;
    const bytes = await archive.get(piece);
    read.unshift(bytes);
    const firstLsn = piece.startLsn <= manifest.startLsn ? manifest.startLsn : firstRecordStart(bytes, piece.startLsn);
    if (firstLsn === undefined) continue;
    const boundary = new WalRecordBoundary();
    boundary.reset(firstLsn);
    let at = firstLsn;
    try {
      for (const [k, part] of read.entries()) {
        const rest = k === 0 ? part.subarray(firstLsn - piece.startLsn) : part;
        feedAcrossTerms(boundary, manifest.history, at, rest);
        at = (at + rest.length) as Lsn;
      }
    } catch (error) {
      throw new WalArchiveError(
        `archived WAL of timeline ${manifest.timelineId} does not decode: ${error instanceof Error ? error.message : String(error)}`,
      );
    }
    if (boundary.endLsn > firstLsn || i === 0) return boundary.endLsn;
  }
  if (read.length > 0)
    throw new WalArchiveError(`no record starts in the archived WAL of timeline ${manifest.timelineId}`);
  return manifest.startLsn;
}
