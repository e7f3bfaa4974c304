/** From a time to an LSN: a search in the commit times of a timeline and its ancestors (commit-times.ts). */
import type {Lsn} from '#postgres/lsn.ts';
import {type CommitChunk, decodeCommitChunk} from './commit-times.ts';
import {type Key, keyKind, rangeOf} from './key.ts';
import {read, tryBlob, tryScanKeys} from './read-path.ts';
import type {TimelineState} from './state.ts';

/** present: `lsn` is the end of the last commit before the first one later than the time. future: nothing is later. */
export interface LsnAtTime {
  readonly kind: 'present' | 'future' | 'past' | 'nodata';
  readonly lsn: Lsn;
}

const noCommits = Buffer.alloc(10);

/** The end of the last commit of which everything before is not later than the time (µs since 1970). The end of history must be readable. */
export function lsnAtTime(state: TimelineState, unixMicroseconds: number): Promise<LsnAtTime> {
  return lookUp(state, unixMicroseconds, state.lastRecordLsn);
}

async function lookUp(state: TimelineState, time: number, until: Lsn): Promise<LsnAtTime> {
  const range = rangeOf(keyKind.commitTimes);
  const at = state.lastRecordLsn;
  // Chunks name their first commit: the list alone says where to search. The ancestor's are asked for there.
  // A timeline that was detached from its ancestor has chunks of before it began.
  const ownStart = state.initialLsn;
  const keys = (await read(state, at, (pass) => tryScanKeys(state, pass, range, at))).filter(
    ({prefix}) => prefix.a * 4294967296 + prefix.b > ownStart,
  );
  const chunkOf = async (key: Key): Promise<CommitChunk> =>
    decodeCommitChunk((await read(state, at, (pass) => tryBlob(state, pass, key, at))) ?? noCommits);
  const tail = state.commitTail?.chunk();
  const first = keys.length > 0 ? await chunkOf(keys[0]!) : tail;
  if (first !== undefined && first.runningMaxBefore > time) return before(state, time, ownStart, until);
  // The last chunk before which nothing is later than the time: the first later commit is in it, or in the tail.
  let low = 0;
  let high = keys.length;
  while (high - low > 1) {
    const middle = (low + high) >>> 1;
    if ((await chunkOf(keys[middle]!)).runningMaxBefore > time) high = middle;
    else low = middle;
  }
  const candidates: CommitChunk[] = [];
  for (let i = Math.max(0, low - 1); i < Math.min(low + 1, keys.length); i++) candidates.push(await chunkOf(keys[i]!));
  if (low + 1 >= keys.length && tail !== undefined) candidates.push(tail);
  let last: Lsn | undefined;
  for (const chunk of candidates)
    for (let i = 0; i < chunk.lsns.length; i++) {
      const lsn = chunk.lsns[i]!;
      if (lsn > until) break;
      if (chunk.times[i]! > time)
        return last === undefined ? before(state, time, ownStart, until) : {kind: 'present', lsn: last};
      last = lsn;
    }
  if (last !== undefined) return {kind: 'future', lsn: last};
  const {ancestor} = state;
  if (ancestor === undefined) return {kind: 'nodata', lsn: state.lastRecordLsn};
  return lookUp(ancestor.state, time, min(until, ancestor.lsn));
}

/** The first commit of this timeline is later: what came before it decides. */
async function before(state: TimelineState, time: number, ownStart: Lsn, until: Lsn): Promise<LsnAtTime> {
  const {ancestor} = state;
  if (ancestor === undefined) return {kind: 'past', lsn: state.initialLsn};
  const found = await lookUp(ancestor.state, time, min(until, ownStart));
  // All the ancestor's commits are early enough: the time lies between them and the first one here.
  if (found.kind === 'future') return {kind: 'present', lsn: found.lsn};
  return found.kind === 'nodata' ? {kind: 'past', lsn: ownStart} : found;
}

function min(x: Lsn, y: Lsn): Lsn {
  return x < y ? x : y;
}
