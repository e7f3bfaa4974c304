/** `pagoda wal fsck`: reads all WAL of a timeline that there is, and says what is wrong with it. Nothing is changed. */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {ObjectStoreError} from '#objectstore/object-store.ts';
import type {WalPiece} from '#objectstore/wal-archive.ts';
import {isEndOfWal, readRecords} from '#cli/wal/records.ts';
import {type ArchiveSource, type FolderSource, type WalSource, findRecordStart} from '#cli/wal/wal-source.ts';

const compareBytes = 1024 * 1024;

/** One line for each thing looked at; answers how many were wrong. */
export async function fsckTimeline(
  folders: readonly FolderSource[],
  archive: ArchiveSource | undefined,
  print: (line: string) => void,
): Promise<number> {
  let problems = 0;
  const good = (line: string): void => print(`ok   ${line}`);
  const bad = (line: string): void => {
    problems++;
    print(`BAD  ${line}`);
  };
  /** Up to where WAL of a folder is known to be final. */
  const finalLsn = new Map<FolderSource, Lsn>();
  for (const folder of folders) finalLsn.set(folder, await checkFolder(folder, good, bad));
  if (archive !== undefined) await checkArchive(archive, good, bad);
  const [first, ...others] = folders;
  if (first === undefined) return problems;
  for (const other of others)
    await compare(first, other, Math.min(finalLsn.get(first)!, finalLsn.get(other)!) as Lsn, good, bad);
  if (archive !== undefined)
    await compare(first, archive, Math.min(finalLsn.get(first)!, archive.endLsn) as Lsn, good, bad);
  return problems;
}

type Say = (line: string) => void;

async function checkFolder(folder: FolderSource, good: Say, bad: Say): Promise<Lsn> {
  const {name, state, markLsn, startLsn} = folder;
  const committed = state?.commitLsn;
  if (state !== undefined)
    good(
      `${name}: control file: term ${state.term}, committed ${formatLsn(state.commitLsn)}, archived ${formatLsn(state.archivedLsn)}, local from ${formatLsn(state.localStartLsn)}, membership generation ${state.membership.generation}`,
    );
  if (startLsn === folder.endLsn) {
    if (committed !== undefined && committed > startLsn)
      bad(`${name}: WAL from ${formatLsn(startLsn)} to ${formatLsn(committed)} is missing`);
    else good(`${name}: no WAL on the disk, none is needed`);
    return startLsn;
  }
  let records = 0;
  try {
    const from = await findRecordStart(folder, startLsn, state !== undefined);
    const {endLsn, failure} = await readRecords(folder, from, () => ++records > 0);
    if (committed !== undefined && endLsn < committed)
      bad(
        `${name}: committed WAL up to ${formatLsn(committed)}, readable only up to ${formatLsn(endLsn)}: ${failure?.reason ?? 'a segment is missing'}. Replace this safekeeper`,
      );
    else if (markLsn !== undefined && endLsn < markLsn)
      bad(
        `${name}: acknowledged WAL up to ${formatLsn(markLsn)}, readable only up to ${formatLsn(endLsn)}: ${failure?.reason ?? 'a segment is missing'}. Replace this safekeeper`,
      );
    else
      good(
        `${name}: ${records} records from ${formatLsn(from)} to ${formatLsn(endLsn)}${isEndOfWal(failure) ? '' : `; behind that a tail that was never acknowledged, or older WAL (${failure!.reason})`}`,
      );
    return committed ?? endLsn;
  } catch (error) {
    if (committed !== undefined && committed <= startLsn) {
      good(`${name}: no whole record yet behind ${formatLsn(startLsn)}`);
      return startLsn;
    }
    bad(`${name}: ${(error as Error).message}`);
    return startLsn;
  }
}

async function checkArchive(source: ArchiveSource, good: Say, bad: Say): Promise<void> {
  const {archive, name} = source;
  const pieces = await archive.list();
  let bytes = 0;
  let damaged = 0;
  for (const piece of pieces) {
    try {
      bytes += (await archive.get(piece)).length;
    } catch (error) {
      // A running safekeeper has replaced a part by a longer one meanwhile.
      if (piece.partialTerm !== undefined && error instanceof ObjectStoreError && error.code === 'not-found') continue;
      damaged++;
      bad((error as Error).message);
    }
  }
  if (damaged === 0) good(`${name}: ${pieces.length} objects, ${bytes} bytes, every checksum right`);
  const furthest = pieces.reduce<WalPiece | undefined>(
    (a, b) => (a === undefined || b.endLsn > a.endLsn ? b : a),
    undefined,
  );
  if (furthest !== undefined && furthest.endLsn > source.endLsn)
    bad(
      `${name}: WAL behind ${formatLsn(source.endLsn)} is missing, but there is some up to ${formatLsn(furthest.endLsn)}`,
    );
  if (source.endLsn === source.startLsn || damaged > 0) return;
  let records = 0;
  const from = await findRecordStart(source, source.startLsn, true);
  const {endLsn, failure} = await readRecords(source, from, () => ++records > 0);
  if (failure === undefined) good(`${name}: ${records} records from ${formatLsn(from)} to ${formatLsn(endLsn)}`);
  else bad(`${name}: WAL does not decode behind ${formatLsn(endLsn)}: ${failure.reason}`);
}

/** Of what both have and what is final. */
async function compare(a: WalSource, b: WalSource, endLsn: Lsn, good: Say, bad: Say): Promise<void> {
  const startLsn = Math.max(a.startLsn, b.startLsn) as Lsn;
  for (let at = startLsn; at < endLsn;) {
    const length = Math.min(compareBytes, endLsn - at);
    const left = await a.read(at, length);
    const right = await b.read(at, Math.min(length, left.length));
    const count = Math.min(left.length, right.length);
    if (count === 0) break; // said already
    if (!left.subarray(0, count).equals(right.subarray(0, count))) {
      const offset = left.findIndex((byte, i) => byte !== right[i]);
      bad(`${a.name} and ${b.name} differ at ${formatLsn((at + offset) as Lsn)}, below what is committed`);
      return;
    }
    at = (at + count) as Lsn;
  }
  if (endLsn > startLsn)
    good(`${a.name} and ${b.name}: the same bytes from ${formatLsn(startLsn)} to ${formatLsn(endLsn)}`);
}
