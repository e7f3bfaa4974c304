/** Schedules that random faults do not meet. */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import type {ProposerMutation} from '#proposer/proposer.ts';
import {SeededRandom} from '#runtime/random.ts';
import {commonPoint} from '#safekeeper/term-history.ts';
import {ScriptCell, type ScriptProposer} from '#sim/script.ts';
import {makeRecord} from '#sim/sim-wal.ts';

const startLsn = 0x1000 as Lsn;

/** Raft (Ongaro, Ousterhout 2014), figure 8, with records in place of entries. Says what term 4 committed, and what term 5 has of it. */
function figure8(mutations?: ReadonlySet<ProposerMutation>): {committedLsn: Lsn; survivingLsn: Lsn} {
  const random = new SeededRandom(8);
  const cell = new ScriptCell({nodes: 3, startLsn, ...(mutations ? {proposerMutations: mutations} : {})});
  const record = (term: number, number: number): Buffer => makeRecord(term, number, 48, random);

  // Term 1 commits something everywhere.
  const p1 = cell.proposer([1, 2, 3]);
  p1.run();
  const first = record(1, 1);
  p1.step({kind: 'wal', lsn: startLsn, bytes: first});
  p1.run();
  const agreed = (startLsn + first.length) as Lsn;
  assert.equal(p1.core.commitLsn, agreed);

  // Term 2, elected by 1 and 2, writes two records, which reach 1 only.
  const p2 = cell.proposer([1, 2]);
  p2.run((node, m) => !(node === 2 && (m.kind === 'elected' || m.kind === 'append')));
  assert.equal(p2.core.phase, 'elected');
  const lost = Buffer.concat([record(2, 1), record(2, 2)]);
  p2.step({kind: 'wal', lsn: agreed, bytes: lost});
  p2.run((node) => node === 1);

  // Term 3, elected by 2 and 3, writes another record, which reaches 3 only.
  const p3 = cell.proposer([2, 3]);
  p3.run((node, m) => !(node === 2 && m.kind === 'elected'));
  assert.equal(p3.core.phase, 'elected');
  p3.step({kind: 'wal', lsn: agreed, bytes: record(3, 1)});
  p3.run((node) => node === 3);

  // Term 4, elected by 1 and 2: its log is that of 1. It copies the first record of term 2 to 2, so that this record is
  // at a majority; the second does not arrive before it dies.
  const p4 = cell.proposer([1, 2]);
  p4.run();
  assert.equal(p4.core.termStartLsn, agreed + lost.length);
  assert.deepEqual(
    p4.core.history.map((e) => e.term),
    [0, 1, 2, 4],
  );
  const recover = p4.outputs.find((o) => o.kind === 'recover');
  assert.ok(recover?.kind === 'recover' && recover.peer === 2 && recover.donor === 1 && recover.startLsn === agreed);
  p4.step({kind: 'recovered', peer: 2, lsn: agreed, bytes: lost.subarray(0, lost.length / 2)});
  p4.run();
  assert.equal(cell.node(2).acceptor.flushLsn, agreed + lost.length / 2);

  // Term 5, elected by 2 and 3: the last term of 3 is the higher one, so the records of term 2 are overwritten.
  const p5 = cell.proposer([2, 3]);
  p5.run();
  assert.equal(p5.core.phase, 'elected');
  const common = commonPoint(p5.core.history, p4.core.history, p4.core.endLsn);
  assert.ok(common.kind === 'common');
  return {committedLsn: p4.core.commitLsn, survivingLsn: common.lsn};
}

test('figure 8: WAL of an older term is not committed by counting its copies', () => {
  const {committedLsn, survivingLsn} = figure8();
  assert.ok(committedLsn <= survivingLsn);
});

test('figure 8 catches a proposer that does commit it', () => {
  let caught = false;
  try {
    const {committedLsn, survivingLsn} = figure8(new Set(['commit-old-terms']));
    caught = committedLsn > survivingLsn;
  } catch {
    caught = true; // safekeeper 2 refused to truncate below what it had been told is committed
  }
  assert.ok(caught);
});

test('a minority that missed three terms is truncated where its WAL parts, and gets the rest', () => {
  const random = new SeededRandom(9);
  const cell = new ScriptCell({nodes: 5, startLsn});
  let commitLsn: Lsn = startLsn;
  // Each term is elected by the first three and leaves uncommitted WAL at safekeeper 4 or 5.
  for (let term = 1; term <= 4; term++) {
    const stray = 4 + (term % 2);
    const p = cell.proposer([1, 2, 3, stray]);
    p.run();
    assert.equal(p.core.phase, 'elected');
    recover(cell, p);
    const bytes = makeRecord(term, 1, 40, random);
    p.step({kind: 'wal', lsn: p.core.endLsn, bytes});
    p.run();
    commitLsn = p.core.commitLsn;
    p.step({kind: 'wal', lsn: p.core.endLsn, bytes: makeRecord(term, 2, 400, random)});
    p.run((node) => node === stray);
    assert.equal(p.core.commitLsn, commitLsn);
  }
  const last = cell.proposer([1, 2, 3]);
  last.run();
  const tail = makeRecord(5, 1, 40, random);
  last.step({kind: 'wal', lsn: last.core.endLsn, bytes: tail});
  last.run();
  for (const stray of [4, 5]) {
    const before = cell.node(stray).acceptor.flushLsn;
    const p = cell.proposer([1, 2, 3, stray]);
    p.run();
    const start = cell.node(stray).acceptor.flushLsn;
    assert.ok(start < before, 'its own WAL is gone');
    assert.ok(start >= startLsn);
    recover(cell, p);
    assert.ok(cell.node(stray).wal.equals(cell.node(1).wal));
  }
});

/** Carries out the recovery reads that the proposer asked for. */
function recover(cell: ScriptCell, p: ScriptProposer): void {
  for (const output of p.outputs.filter((o) => o.kind === 'recover')) {
    const {wal} = cell.node(output.donor);
    p.step({
      kind: 'recovered',
      peer: output.peer,
      lsn: output.startLsn,
      bytes: wal.subarray(output.startLsn - startLsn),
    });
    p.run();
  }
}
