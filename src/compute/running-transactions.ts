/** Which transactions were running at the LSN of a data directory, as its commit log tells. */
import {parseControlFile} from '#postgres/control-file.ts';
import {clogXactsPerPage, slruPagesPerSegment, slruSegmentName} from '#postgres/slru.ts';
import {blockSize} from '#postgres/relation.ts';
import {type Disk, joinPath} from '#runtime/disk.ts';

/** The newest are kept: what is older and has no verdict belonged to computes that crashed. */
const xidsMax = 4000;
const firstNormalXid = 3;

/**
 * Ids below nextXid that have neither committed nor aborted: running ones, their subtransactions, prepared ones, those of
 * computes that crashed, and ids that were never given out. The last two do no harm: nobody waits for them, and the
 * primary's next list of running transactions drops them.
 */
export function runningXids(disk: Disk, pgdata: string): number[] {
  const {checkPoint} = parseControlFile(disk.readFile(joinPath(pgdata, 'global', 'pg_control')));
  const next = Number(BigInt(checkPoint.nextXid) & 0xffffffffn);
  const oldest = checkPoint.oldestXid;
  const perSegment = clogXactsPerPage * slruPagesPerSegment;
  const found: number[] = [];
  let segment = -1;
  let bytes: Buffer = Buffer.alloc(0);
  // Backwards from the newest; ids wrap around, and the first three are no transactions'.
  for (let xid = (next - 1) >>> 0; xid !== (oldest - 1) >>> 0 && found.length < xidsMax; xid = (xid - 1) >>> 0) {
    if (xid < firstNormalXid) continue;
    const at = Math.floor(xid / perSegment);
    if (at !== segment) {
      segment = at;
      const path = joinPath(pgdata, 'pg_xact', slruSegmentName(segment));
      bytes = disk.exists(path) ? disk.readFile(path) : Buffer.alloc(0);
    }
    const index = xid % perSegment;
    const byte =
      bytes[Math.floor(index / clogXactsPerPage) * blockSize + Math.floor((index % clogXactsPerPage) / 4)] ?? 0;
    const status = (byte >> ((index % 4) * 2)) & 3;
    if (status === 0 || status === 3) found.push(xid);
  }
  return found;
}
