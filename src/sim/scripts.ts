/**
 * Scripted schedules, for rules whose violation random faults hardly ever meet. Each says what went wrong, and nothing when
 * all is as it should be; the mutation check runs them with seeded bugs.
 */
import type {Lsn} from '#postgres/lsn.ts';
import {SeededRandom} from '#runtime/random.ts';
import {decodeControlFile, encodeControlFile} from '#safekeeper/control-file.ts';
import {commonPoint} from '#safekeeper/term-history.ts';
import type {Mutations} from '#sim/mutations.ts';
import {ScriptCell, type ScriptProposer} from '#sim/script.ts';
import {makeRecord} from '#sim/sim-wal.ts';
import type {Membership} from '#wire/safekeeper.ts';

export interface Script {
  readonly name: string;
  /** What went wrong. An assertion of the code under test counts, too. */
  run(mutations?: Mutations): string | undefined;
}

const startLsn = 0x1000 as Lsn;

export const scripts: readonly Script[] = [
  script('figure 8', figure8),
  script('five nodes, truncation', fiveNodes),
  script('an elected message comes late', lateElected),
  script('an append of a deposed proposer comes late', lateAppend),
  script('acknowledgements of an earlier generation', acksOfEarlierGeneration),
  script('one term is won in two configurations', oneTermTwice),
  script('the only donor is gone', donorGone),
  script('a damaged donor', damagedDonor),
  script('a control file of many terms', manyTerms),
  script('a compute starts with a configuration that is over', leftAlone),
];

function script(name: string, play: (mutations: Mutations) => void): Script {
  return {
    name,
    run(mutations = {}) {
      try {
        play(mutations);
        return undefined;
      } catch (error) {
        return (error as Error).message;
      }
    },
  };
}

function expect(condition: boolean, message: string): void {
  if (!condition) throw new Error(message);
}

/** Raft (Ongaro, Ousterhout 2014), figure 8, with records in place of entries. */
function figure8(mutations: Mutations): void {
  const random = new SeededRandom(8);
  const cell = new ScriptCell({nodes: 3, startLsn, mutations});
  const record = (term: number, number: number): Buffer => makeRecord(term, number, 48, random);

  // Term 1 commits something everywhere.
  const p1 = cell.proposer([1, 2, 3]);
  p1.run();
  const first = record(1, 1);
  p1.step({kind: 'wal', lsn: startLsn, bytes: first});
  p1.run();
  const agreed = (startLsn + first.length) as Lsn;
  expect(p1.core.commitLsn === agreed, 'term 1 commits');

  // Term 2, elected by 1 and 2, writes two records, which reach 1 only.
  const p2 = cell.proposer([1, 2]);
  p2.run((node, m) => !(node === 2 && (m.kind === 'elected' || m.kind === 'append')));
  expect(p2.core.phase === 'elected', 'term 2 is won');
  const lost = Buffer.concat([record(2, 1), record(2, 2)]);
  p2.step({kind: 'wal', lsn: agreed, bytes: lost});
  p2.run((node) => node === 1);

  // Term 3, elected by 2 and 3, writes another record, which reaches 3 only.
  const p3 = cell.proposer([2, 3]);
  p3.run((node, m) => !(node === 2 && m.kind === 'elected'));
  expect(p3.core.phase === 'elected', 'term 3 is won');
  p3.step({kind: 'wal', lsn: agreed, bytes: record(3, 1)});
  p3.run((node) => node === 3);

  // Term 4, elected by 1 and 2: its log is that of 1. It copies the first record of term 2 to 2, so that this record is
  // at a majority; the second does not arrive before it dies.
  const p4 = cell.proposer([1, 2]);
  p4.run();
  expect(p4.core.termStartLsn === agreed + lost.length, 'the log of term 4 is that of safekeeper 1');
  expect(p4.core.history.map((e) => e.term).join() === '0,1,2,4', 'its history has no term 3');
  const recover = p4.outputs.find((o) => o.kind === 'recover');
  expect(
    recover?.kind === 'recover' && recover.peer === 2 && recover.donor === 1 && recover.startLsn === agreed,
    'safekeeper 2 gets the WAL of term 2 from 1',
  );
  p4.step({kind: 'recovered', peer: 2, lsn: agreed, bytes: lost.subarray(0, lost.length / 2)});
  p4.run();
  expect(cell.node(2).acceptor.flushLsn === agreed + lost.length / 2, 'safekeeper 2 has its first record');

  // Term 5, elected by 2 and 3: the last term of 3 is the higher one, so the records of term 2 are overwritten.
  const p5 = cell.proposer([2, 3]);
  p5.run();
  expect(p5.core.phase === 'elected', 'term 5 is won');
  const common = commonPoint(p5.core.history, p4.core.history, p4.core.endLsn);
  expect(
    common.kind === 'common' && p4.core.commitLsn <= common.lsn,
    'WAL of an older term was committed by counting its copies',
  );
}

/** Five nodes; a minority that missed three terms is truncated where its WAL parts, and gets the rest. */
function fiveNodes(mutations: Mutations): void {
  const random = new SeededRandom(9);
  const cell = new ScriptCell({nodes: 5, startLsn, mutations});
  let commitLsn: Lsn = startLsn;
  // Each term is elected by the first three and leaves uncommitted WAL at safekeeper 4 or 5.
  for (let term = 1; term <= 4; term++) {
    const stray = 4 + (term % 2);
    const p = cell.proposer([1, 2, 3, stray]);
    p.run();
    expect(p.core.phase === 'elected', `term ${term} is won`);
    recover(cell, p);
    const bytes = makeRecord(term, 1, 40, random);
    p.step({kind: 'wal', lsn: p.core.endLsn, bytes});
    p.run();
    commitLsn = p.core.commitLsn;
    p.step({kind: 'wal', lsn: p.core.endLsn, bytes: makeRecord(term, 2, 400, random)});
    p.run((node) => node === stray);
    expect(p.core.commitLsn === commitLsn, 'a minority commits nothing');
  }
  const last = cell.proposer([1, 2, 3]);
  last.run();
  last.step({kind: 'wal', lsn: last.core.endLsn, bytes: makeRecord(5, 1, 40, random)});
  last.run();
  for (const stray of [4, 5]) {
    const before = cell.node(stray).acceptor.flushLsn;
    const p = cell.proposer([1, 2, 3, stray]);
    p.run();
    const start = cell.node(stray).acceptor.flushLsn;
    expect(start < before && start >= startLsn, `the own WAL of safekeeper ${stray} is gone`);
    recover(cell, p);
    expect(cell.node(stray).wal.equals(cell.node(1).wal), `safekeeper ${stray} has what 1 has`);
  }
}

/**
 * Neon's issue 8212 and its like: an `elected` that was under way for long, of a connection that a newer one has replaced,
 * arrives when WAL behind it has been acknowledged. It may truncate nothing that the same term wrote.
 */
function lateElected(mutations: Mutations): void {
  const random = new SeededRandom(10);
  const cell = new ScriptCell({nodes: 3, startLsn, mutations});
  const p = cell.proposer([1, 2, 3]);
  p.run();
  const bytes = makeRecord(1, 1, 100, random);
  p.step({kind: 'wal', lsn: startLsn, bytes});
  p.run();
  const node = cell.node(1);
  const {flushLsn} = node.acceptor;
  const {history} = p.core;
  node.step({kind: 'message', connection: 99, message: {kind: 'elected', generation: 1, term: 1, history}});
  expect(node.acceptor.flushLsn === flushLsn, 'a late elected message truncates acknowledged WAL');
  // One of an older term changes nothing at all.
  const p2 = cell.proposer([1, 2, 3]);
  p2.run();
  p2.step({kind: 'wal', lsn: p2.core.endLsn, bytes: makeRecord(2, 1, 100, random)});
  p2.run();
  const then = node.acceptor.flushLsn;
  node.step({kind: 'message', connection: 98, message: {kind: 'elected', generation: 1, term: 1, history}});
  expect(node.acceptor.flushLsn === then, 'an elected message of an older term truncates');
  expect(node.acceptor.state.history.at(-1)!.term === 2, 'an elected message of an older term is adopted');
}

function lateAppend(mutations: Mutations): void {
  const random = new SeededRandom(11);
  const cell = new ScriptCell({nodes: 3, startLsn, mutations});
  const p1 = cell.proposer([1, 2, 3]);
  p1.run();
  const p2 = cell.proposer([1, 2, 3]);
  p2.run();
  expect(p2.core.phase === 'elected', 'term 2 is won');
  const bytes = makeRecord(1, 1, 64, random);
  const node = cell.node(1);
  node.step({
    kind: 'message',
    connection: 1,
    message: {
      kind: 'append',
      generation: 1,
      term: 1,
      beginLsn: startLsn,
      commitLsn: startLsn,
      wantsReply: false,
      bytes,
    },
  });
  expect(node.acceptor.writeLsn === startLsn, 'WAL of a deposed proposer is taken');
}

/**
 * Safekeeper 3 acknowledges a record that only it has, loses its disk, leaves, and comes back with a copy of 1. The proposer
 * has heard nothing of all that; its acknowledgement was of another generation and must not count in the newest one, though
 * the members are the same.
 */
function acksOfEarlierGeneration(mutations: Mutations): void {
  const random = new SeededRandom(12);
  const cell = new ScriptCell({nodes: 3, startLsn, mutations});
  const {members} = cell.membership;
  const without = members.slice(0, 2);
  const p = cell.proposer([1, 2, 3]);
  p.run();
  const bytes = makeRecord(1, 1, 64, random);
  p.step({kind: 'wal', lsn: startLsn, bytes});
  p.run((node) => node === 3);
  expect(p.core.commitLsn === startLsn, 'one acknowledgement commits nothing');
  const last: Membership = {generation: 5, members, newMembers: []};
  const changes: readonly Membership[] = [
    {generation: 2, members, newMembers: without},
    {generation: 3, members: without, newMembers: []},
    {generation: 4, members: without, newMembers: members},
    last,
  ];
  for (const membership of changes) for (const id of [1, 2]) tell(cell, id, membership, 1);
  cell.replace(3, last);
  // It learns of the newest generation from 1 and 2, and 1 gets the record.
  p.step({kind: 'tick', nowMs: 1000, random: 0});
  p.run((node, m) => node === 1 || (node === 2 && !(m.kind === 'append' && m.bytes.length > 0)));
  expect(p.core.membership.generation === 5, 'the proposer follows the membership');
  p.step({kind: 'tick', nowMs: 2000, random: 0});
  p.run((node) => node === 1);
  expect(p.core.commitLsn === startLsn, 'an acknowledgement of an earlier generation commits WAL');
}

/**
 * Term 1 is won in {1,2,3} by votes of 1 and 3 that were given before the change to {2,4}; nobody of the new set knows. When
 * the new members' term is not raised, a proposer of theirs wins the same term.
 */
function oneTermTwice(mutations: Mutations): void {
  const cell = new ScriptCell({nodes: 3, spares: 1, startLsn, mutations});
  const {joint, final} = change(cell, [2, 4]);
  const p1 = cell.proposer([1, 3]);
  p1.run((_, m) => m.kind !== 'elected');
  expect(p1.core.phase === 'elected' && p1.core.term === 1, 'term 1 is won');
  let term = 0;
  for (const id of [1, 2]) {
    tell(cell, id, joint, 0);
    term = Math.max(term, cell.node(id).acceptor.position.term);
  }
  for (const id of [2, 4]) tell(cell, id, joint, term);
  for (const id of [2, 4]) tell(cell, id, final, 0);
  const p2 = cell.proposer([2, 4], final);
  p2.run();
  expect(p2.core.phase === 'elected', 'the new configuration elects');
  expect(p2.core.term > p1.core.term, 'one term was won in two configurations');
}

/**
 * Past bug (461404f): a proposer was elected with the log of a safekeeper that was gone before anybody else had it, and
 * waited for it for ever. Nothing of its term is committed, so it must start over among the others.
 */
function donorGone(mutations: Mutations): void {
  const random = new SeededRandom(13);
  const cell = new ScriptCell({nodes: 3, startLsn, mutations});
  const p1 = cell.proposer([1, 2, 3]);
  p1.run();
  p1.step({kind: 'wal', lsn: startLsn, bytes: makeRecord(1, 1, 100, random)});
  p1.run((node) => node === 1);
  const p2 = cell.proposer([1, 2]);
  p2.run();
  expect(p2.core.phase === 'elected' && p2.core.termStartLsn > startLsn, 'the log of safekeeper 1 is the longest');
  p2.step({kind: 'disconnected', peer: 1});
  p2.connect(3);
  for (let nowMs = 0; nowMs < 10_000; nowMs += 500) {
    p2.step({kind: 'tick', nowMs, random: 0});
    p2.run((node) => node !== 1);
  }
  expect(p2.core.phase === 'elected' && p2.core.commitLsn === startLsn, 'it waits for a donor that is gone');
}

/**
 * Past bug (seed 13606): of the configuration a compute was told, 2 has lost its disk and 1 was excluded before they ever met;
 * 3 alone has left it, and a majority might still be there. It must not wait for them for ever.
 */
function leftAlone(mutations: Mutations): void {
  const cell = new ScriptCell({nodes: 3, spares: 2, startLsn, mutations});
  const {final} = change(cell, [3, 4, 5]);
  for (const id of [3, 4, 5]) tell(cell, id, final, 0);
  const p = cell.proposer([3]);
  p.run();
  for (let nowMs = 0; nowMs < 5000; nowMs += 500) p.step({kind: 'tick', nowMs, random: 0});
  expect(p.core.membership.generation === final.generation, 'a proposer waits for safekeepers that are gone');
  p.connect(4);
  p.run();
  expect(p.core.commitLsn === startLsn, 'the new configuration elects it');
}

/**
 * Past bug (seed 70753): what the best donor sends does not decode, so that the lagging safekeeper refuses it and comes again.
 * Another one must be asked then, and the first again when nobody else is left.
 */
function damagedDonor(mutations: Mutations): void {
  const random = new SeededRandom(14);
  const cell = new ScriptCell({nodes: 4, startLsn, mutations});
  const p1 = cell.proposer([1, 2, 3]);
  p1.run();
  p1.step({kind: 'wal', lsn: startLsn, bytes: makeRecord(1, 1, 100, random)});
  p1.run();
  const p2 = cell.proposer([1, 2, 3, 4]);
  p2.run();
  const asked: number[] = [];
  for (let i = 0; i < 4; i++) {
    const output = p2.outputs.findLast((o) => o.kind === 'recover');
    expect(output?.kind === 'recover' && output.peer === 4, 'safekeeper 4 lacks WAL');
    if (output?.kind === 'recover') asked.push(output.donor);
    p2.step({kind: 'disconnected', peer: 4});
    p2.connect(4);
    p2.run();
  }
  expect(
    new Set(asked.slice(0, 3)).size === 3,
    `safekeepers ${asked.join()} were asked for WAL, and not every one that has it`,
  );
  expect(asked[3] === asked[0], 'when all were asked, the first is asked again');
}

/** Past bug (regression 0001): the message writer wrote into its old buffer when it had to grow. */
function manyTerms(): void {
  const {acceptor} = new ScriptCell({nodes: 3, startLsn}).node(1);
  for (let terms = 1; terms <= 200; terms++) {
    const history = Array.from({length: terms}, (_, i) => ({term: i, lsn: (startLsn + i * 8) as Lsn}));
    const bytes = encodeControlFile({...acceptor.state, term: terms, history});
    const back = decodeControlFile(bytes, 'safekeeper.control');
    expect(
      back.history.length === terms && back.history.at(-1)!.lsn === history.at(-1)!.lsn,
      `${terms} terms come back`,
    );
  }
}

function change(
  cell: ScriptCell,
  ids: readonly number[] = [1, 2, 4],
): {readonly joint: Membership; readonly final: Membership} {
  const target = ids.map((nodeId) => ({nodeId, host: `sk${nodeId}`, port: 1}));
  return {
    joint: {generation: 2, members: cell.membership.members, newMembers: target},
    final: {generation: 3, members: target, newMembers: []},
  };
}

function tell(cell: ScriptCell, id: number, membership: Membership, minTerm: number): void {
  cell.node(id).step({kind: 'membership', membership, minTerm});
}

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
