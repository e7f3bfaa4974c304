import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {Archiver, type ArchiverOutput, type ArchiverView, termAt} from '#safekeeper/archiver.ts';

const segmentSize = 1000;
const lsn = (n: number): Lsn => n as Lsn;

function view(changes: Partial<Record<keyof ArchiverView, unknown>>): ArchiverView {
  return {
    nowMs: 0,
    startLsn: lsn(1100),
    localStartLsn: lsn(1100),
    archivedLsn: lsn(1100),
    commitLsn: lsn(1100),
    writeLsn: changes['commitLsn'] ?? lsn(1100),
    history: [
      {term: 0, lsn: lsn(1100)},
      {term: 3, lsn: lsn(1100)},
      {term: 7, lsn: lsn(2500)},
    ],
    remoteConsistentLsn: lsn(0),
    readersLsn: undefined,
    busy: false,
    commitStillSinceMs: 0,
    peers: [],
    ...changes,
  } as ArchiverView;
}

/** timelineId 00000000…: the first of those that are able archives. */
function archiver(nodeId: number): Archiver {
  return new Archiver({
    nodeId,
    timelineId: '0'.repeat(32),
    segmentSize,
    partialAfterMs: 100,
    partialEveryMs: 10_000,
    evictAfterMs: 500,
    takeOverMs: 50,
  });
}
const kinds = (outputs: readonly ArchiverOutput[]): string[] => outputs.map((o) => o.kind);

test('whole segments one by one, only what is committed, one job at a time', () => {
  const a = archiver(1);
  const now = view({commitLsn: lsn(3999), nowMs: 10, commitStillSinceMs: 10});
  assert.deepEqual(a.step({kind: 'tick', view: view({commitLsn: lsn(1999), nowMs: 5, commitStillSinceMs: 5})}), []);
  const [job] = a.step({kind: 'tick', view: now});
  assert.ok(job?.kind === 'archive');
  assert.deepEqual(job.piece, {segment: 1, startLsn: 1100, endLsn: 2000, partialTerm: undefined});
  assert.deepEqual(a.step({kind: 'tick', view: now}), []);
  assert.deepEqual(a.step({kind: 'found', piece: job.piece, byUs: true}), [
    {kind: 'record', archivedLsn: 2000, localStartLsn: 1100},
  ]);
  const [next] = a.step({kind: 'tick', view: {...now, archivedLsn: lsn(2000)}});
  assert.ok(next?.kind === 'archive' && next.piece.startLsn === 2000 && next.piece.endLsn === 3000);
});

test('the part of a branch that rests, named for the term that wrote it; then the longer one replaces it', () => {
  const a = archiver(1);
  const resting = view({commitLsn: lsn(2600), archivedLsn: lsn(2000), nowMs: 200, commitStillSinceMs: 90});
  const [job] = a.step({kind: 'tick', view: resting});
  assert.ok(job?.kind === 'archive');
  assert.deepEqual(job.piece, {segment: 2, startLsn: 2000, endLsn: 2600, partialTerm: 7});
  assert.deepEqual(kinds(a.step({kind: 'found', piece: job.piece, byUs: true})), ['record']);
  const later = {...resting, archivedLsn: lsn(2600), commitLsn: lsn(3100), nowMs: 201, commitStillSinceMs: 201};
  const [whole] = a.step({kind: 'tick', view: later});
  assert.ok(whole?.kind === 'archive' && whole.piece.endLsn === 3000 && whole.piece.partialTerm === undefined);
  assert.deepEqual(kinds(a.step({kind: 'found', piece: whole.piece, byUs: true})), ['record', 'forget-parts']);
  assert.equal(termAt(resting.history, lsn(2500)), 3);
});

test('a branch that is written to all the time has its part archived now and then', () => {
  const a = archiver(1);
  const at = (nowMs: number): ArchiverOutput[] =>
    a.step({kind: 'tick', view: view({commitLsn: lsn(1500 + nowMs / 100), nowMs, commitStillSinceMs: nowMs})});
  assert.deepEqual(at(0), []);
  assert.deepEqual(at(9000), []);
  assert.deepEqual(kinds(at(10_000)), ['archive']);
});

test('one member archives, the others find; the next takes over when it does nothing', () => {
  const peers = [1, 2].map((nodeId) => ({nodeId, commitLsn: lsn(2500), archivedLsn: lsn(1100)}));
  const third = archiver(3);
  const at = (nowMs: number, archivedLsn = 1100): ArchiverOutput[] =>
    third.step({
      kind: 'tick',
      view: view({
        commitLsn: lsn(2500),
        nowMs,
        commitStillSinceMs: nowMs,
        peers: peers.map((peer) => ({...peer, archivedLsn: lsn(archivedLsn)})),
      }),
    });
  assert.deepEqual(at(0), []);
  assert.deepEqual(at(99), []);
  const [verify] = at(99, 2000);
  assert.ok(verify?.kind === 'verify' && verify.piece.endLsn === 2000);
  // What a peer claims and what is not there, it archives itself in its turn.
  assert.deepEqual(third.step({kind: 'not-found', piece: verify.piece}), []);
  assert.deepEqual(kinds(at(100, 2000)), ['archive']);
  // A peer that lags is not able.
  const first = archiver(2);
  const lagging = view({commitLsn: lsn(2500), peers: [{nodeId: 1, commitLsn: lsn(1500), archivedLsn: lsn(1100)}]});
  assert.deepEqual(kinds(first.step({kind: 'tick', view: lagging})), ['archive']);
});

test('a part of a peer that ends beyond our commit LSN cannot be judged yet', () => {
  const a = archiver(2);
  const peers = [{nodeId: 1, commitLsn: lsn(1700), archivedLsn: lsn(1700)}];
  assert.deepEqual(a.step({kind: 'tick', view: view({commitLsn: lsn(1600), peers})}), []);
  assert.deepEqual(kinds(a.step({kind: 'tick', view: view({commitLsn: lsn(1700), peers})})), ['verify']);
});

test('a file goes when archive, pageserver and readers are all beyond it, and the control file says so first', () => {
  const all = {archivedLsn: lsn(4000), commitLsn: lsn(4500), remoteConsistentLsn: lsn(4200), busy: true};
  const trims = (changes: Partial<Record<keyof ArchiverView, unknown>>): readonly ArchiverOutput[] =>
    archiver(1).step({kind: 'tick', view: view({...all, ...changes})});
  assert.deepEqual(trims({}), [
    {kind: 'record', archivedLsn: 4000, localStartLsn: 4000},
    {kind: 'drop', belowLsn: 4000},
  ]);
  const below = (outputs: readonly ArchiverOutput[]): number | undefined =>
    outputs.find((o) => o.kind === 'drop')?.belowLsn;
  assert.equal(below(trims({archivedLsn: lsn(3000)})), 3000);
  assert.equal(below(trims({remoteConsistentLsn: lsn(2999)})), 2000);
  assert.equal(below(trims({readersLsn: lsn(3500)})), 3000);
  assert.equal(below(trims({remoteConsistentLsn: lsn(1999)})), undefined);
});

test('all of it goes when the branch rests, but not an uncommitted tail, nor under a reader', () => {
  const rest = {
    archivedLsn: lsn(4500),
    commitLsn: lsn(4500),
    remoteConsistentLsn: lsn(4600),
    localStartLsn: lsn(4000),
    nowMs: 500,
  };
  const drops = (changes: Partial<Record<keyof ArchiverView, unknown>>): readonly string[] =>
    kinds(archiver(1).step({kind: 'tick', view: view({...rest, ...changes})}));
  assert.deepEqual(drops({}), ['record', 'drop']);
  assert.deepEqual(drops({writeLsn: lsn(4501)}), []);
  assert.deepEqual(drops({busy: true}), []);
  assert.deepEqual(drops({remoteConsistentLsn: lsn(4499)}), []);
  assert.deepEqual(drops({archivedLsn: lsn(4400), nowMs: 500, commitStillSinceMs: 450}), []);
  assert.deepEqual(drops({nowMs: 499}), []);
  assert.equal(Archiver.atRest({localStartLsn: lsn(5), commitLsn: lsn(5), writeLsn: lsn(5)}), true);
  assert.equal(Archiver.atRest({localStartLsn: lsn(5), commitLsn: lsn(5), writeLsn: lsn(6)}), false);
});
