import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {Acceptor, type AcceptorOutput} from '#safekeeper/acceptor.ts';
import type {RecordBoundary} from '#safekeeper/record-boundary.ts';
import {commonPoint, cutHistory} from '#safekeeper/term-history.ts';
import {initialState} from '#safekeeper/timeline-storage.ts';
import type {AcceptorMessage, ProposerMessage} from '#wire/safekeeper.ts';

const at = (value: number): Lsn => value as Lsn;

/** Records of ten bytes. */
class TenByteRecords implements RecordBoundary {
  endLsn = at(0);
  #fed = 0;
  reset(lsn: Lsn): void {
    this.endLsn = lsn;
    this.#fed = lsn;
  }
  feed(bytes: Buffer): Lsn {
    this.#fed += bytes.length;
    this.endLsn = at(Math.floor(this.#fed / 10) * 10);
    return this.endLsn;
  }
}

function acceptor(): Acceptor {
  return new Acceptor({
    nodeId: 1,
    state: initialState({
      tenantId: 'a'.repeat(32),
      timelineId: 'b'.repeat(32),
      systemId: '',
      pgVersion: 0,
      startLsn: at(100),
      membership: {generation: 1, members: [{nodeId: 1, host: 'h', port: 1}], newMembers: []},
    }),
    flushLsn: at(100),
    boundary: new TenByteRecords(),
  });
}

const kinds = (outputs: readonly AcceptorOutput[]): string[] =>
  outputs.map((o) => (o.kind === 'send' ? o.message.kind : o.kind));
/** The only message of this kind that was sent. */
function sent<K extends AcceptorMessage['kind']>(
  outputs: readonly AcceptorOutput[],
  kind: K,
): Extract<AcceptorMessage, {kind: K}> {
  for (const o of outputs)
    if (o.kind === 'send' && o.message.kind === kind) return o.message as Extract<AcceptorMessage, {kind: K}>;
  throw new Error(`no ${kind} was sent`);
}
const say = (a: Acceptor, message: ProposerMessage, connection = 1): AcceptorOutput[] =>
  a.step({kind: 'message', connection, message});
const vote = (term: number): ProposerMessage => ({kind: 'vote-request', generation: 1, term});
const elected = (
  term: number,
  lsn: number,
  before: {term: number; lsn: Lsn}[] = [{term: 0, lsn: at(100)}],
): ProposerMessage => ({
  kind: 'elected',
  generation: 1,
  term,
  history: [...before, {term, lsn: at(lsn)}],
});
const append = (term: number, beginLsn: number, length: number, commitLsn = 0): ProposerMessage => ({
  kind: 'append',
  generation: 1,
  term,
  beginLsn: at(beginLsn),
  commitLsn: at(commitLsn),
  wantsReply: false,
  bytes: Buffer.alloc(length),
});

test('votes once a term, and saves the term before it answers', () => {
  const a = acceptor();
  const first = say(a, vote(3));
  assert.deepEqual(kinds(first), ['save', 'vote-response']);
  assert.ok(sent(first, 'vote-response').granted);
  for (const term of [3, 2]) {
    const again = say(a, vote(term), 2);
    assert.deepEqual(kinds(again), ['vote-response']);
    assert.ok(!sent(again, 'vote-response').granted);
    assert.equal(sent(again, 'vote-response').term, 3);
  }
});

test('acknowledges only what a finished flush covers, at the end of a record', () => {
  const a = acceptor();
  say(a, vote(1));
  say(a, elected(1, 100));
  assert.deepEqual(kinds(say(a, append(1, 100, 15))), ['write']);
  assert.deepEqual(kinds(a.step({kind: 'batch-end'})), ['flush']);
  assert.deepEqual(kinds(say(a, append(1, 115, 15))), ['write']);
  assert.deepEqual(kinds(a.step({kind: 'batch-end'})), [], 'one flush at a time');
  assert.equal(a.flushLsn, 100);
  const done = a.step({kind: 'flushed', epoch: 0});
  assert.deepEqual(kinds(done), ['mark', 'append-response', 'flush'], 'the next one begins at once');
  assert.equal(sent(done, 'append-response').flushLsn, 110);
  assert.equal(sent(done, 'append-response').syncedLsn, 115);
  a.step({kind: 'flushed', epoch: 0});
  assert.equal(a.flushLsn, 130);
  assert.equal(a.commitLsn, 100);
  assert.deepEqual(kinds(say(a, append(1, 130, 0, 125))), ['commit']);
  assert.equal(a.commitLsn, 125);
});

test('tells the deposed proposer at once, also when its last append was not flushed yet', () => {
  const a = acceptor();
  say(a, vote(1));
  say(a, elected(1, 100));
  say(a, append(1, 100, 10));
  a.step({kind: 'batch-end'});
  const raised = say(a, vote(2), 2);
  assert.deepEqual(kinds(raised), ['save', 'append-response', 'vote-response']);
  assert.deepEqual(
    raised.flatMap((o) => (o.kind === 'send' ? [[o.connection, o.message.term]] : [])),
    [
      [1, 2],
      [2, 2],
    ],
  );
  assert.equal(sent(raised, 'append-response').flushLsn, 100);
  assert.deepEqual(kinds(say(a, vote(3), 2)), ['save', 'vote-response'], 'once');
});

test('truncates where histories part, durably before it adopts the new one, never below what is committed', () => {
  const a = acceptor();
  say(a, vote(1));
  say(a, elected(1, 100));
  say(a, append(1, 100, 50, 120));
  a.step({kind: 'batch-end'});
  a.step({kind: 'flushed', epoch: 0});
  assert.equal(a.commitLsn, 120);
  // A proposer that was elected without us knows WAL of term 1 only up to 130.
  const taken = say(
    a,
    elected(2, 130, [
      {term: 0, lsn: at(100)},
      {term: 1, lsn: at(100)},
    ]),
    2,
  );
  assert.deepEqual(kinds(taken), ['save', 'append-response', 'truncate', 'save', 'elected-response']);
  assert.equal(a.flushLsn, 130);
  // The same message again, late: nothing is lost.
  say(a, append(2, 130, 20), 2);
  a.step({kind: 'batch-end'});
  a.step({kind: 'flushed', epoch: 1});
  const again = say(
    a,
    elected(2, 130, [
      {term: 0, lsn: at(100)},
      {term: 1, lsn: at(100)},
    ]),
    3,
  );
  assert.deepEqual(kinds(again), ['elected-response']);
  assert.equal(a.flushLsn, 150);
  // Connection 2 was replaced.
  assert.deepEqual(kinds(say(a, append(2, 150, 10), 2)), ['refuse']);
  // One that lacks committed WAL is refused.
  assert.deepEqual(
    kinds(
      say(
        a,
        elected(3, 110, [
          {term: 0, lsn: at(100)},
          {term: 1, lsn: at(100)},
        ]),
        4,
      ),
    ),
    ['refuse'],
  );
  assert.equal(a.term, 2);
});

test('a flush that a truncation overtook moves nothing', () => {
  const a = acceptor();
  say(a, vote(1));
  say(a, elected(1, 100));
  say(a, append(1, 100, 50));
  a.step({kind: 'batch-end'});
  say(a, elected(2, 100), 2);
  assert.equal(a.flushLsn, 100);
  a.step({kind: 'flushed', epoch: 0});
  assert.equal(a.flushLsn, 100);
});

test('refuses gaps, other generations, other timelines and appends before the election', () => {
  const a = acceptor();
  const refusal = (outputs: AcceptorOutput[]): string | undefined => outputs.find((o) => o.kind === 'refuse')?.code;
  assert.equal(refusal(say(a, append(1, 100, 10))), 'not-elected');
  say(a, vote(1));
  assert.equal(refusal(say(a, append(1, 100, 10))), 'not-elected');
  say(a, elected(1, 100));
  assert.equal(refusal(say(a, append(1, 110, 10))), 'gap');
  assert.equal(refusal(say(a, {...vote(2), generation: 2} as ProposerMessage)), 'wrong-generation');
  const greeting: ProposerMessage = {
    kind: 'greeting',
    tenantId: 'a'.repeat(32),
    timelineId: 'b'.repeat(32),
    pgVersion: 150018,
    systemId: '5',
    generation: 1,
  };
  assert.deepEqual(kinds(say(a, greeting)), ['save', 'greeting-response']);
  assert.equal(refusal(say(a, {...greeting, timelineId: 'c'.repeat(32)})), 'wrong-timeline');
  assert.equal(refusal(say(a, {...greeting, pgVersion: 160000})), 'wrong-timeline');
  assert.equal(refusal(say(a, {...greeting, systemId: '6'})), 'wrong-timeline');
});

test('a write that fails acknowledges nothing and is dropped by the next election', () => {
  const a = acceptor();
  say(a, vote(1));
  say(a, elected(1, 100));
  say(a, append(1, 100, 20));
  assert.deepEqual(kinds(a.step({kind: 'write-failed', message: 'disk full'})), ['refuse']);
  assert.deepEqual(kinds(a.step({kind: 'batch-end'})), []);
  assert.deepEqual(kinds(say(a, elected(1, 100), 2)), ['truncate', 'elected-response']);
  assert.deepEqual(kinds(say(a, append(1, 100, 20), 2)), ['write']);
});

test('a peer that breaks off inside a record: the commit LSN stays where a record ends, also when a proposer brings the rest', () => {
  const a = acceptor();
  const sync = (): void => {
    const flush = a.step({kind: 'batch-end'}).find((o) => o.kind === 'flush');
    a.step({kind: 'flushed', epoch: flush!.epoch});
  };
  const before = [
    {term: 0, lsn: at(100)},
    {term: 1, lsn: at(100)},
  ];
  a.step({kind: 'peer-begin', connection: 9, history: before, commitLsn: at(150)});
  a.step({kind: 'peer-wal', connection: 9, beginLsn: at(100), bytes: Buffer.alloc(25)});
  sync();
  assert.equal(a.commitLsn, 120);
  say(a, vote(2));
  say(a, elected(2, 150, before), 2);
  say(a, append(2, 120, 40), 2);
  sync();
  assert.equal(a.flushLsn, 160);
  assert.equal(a.commitLsn, 120, 'a restart reads from here');
});

test('common point of histories', () => {
  const h = (...entries: [number, number][]): {term: number; lsn: Lsn}[] =>
    entries.map(([term, lsn]) => ({term, lsn: at(lsn)}));
  assert.deepEqual(commonPoint(h([0, 0], [1, 10]), h([0, 0], [1, 10]), at(30)), {kind: 'common', lsn: 30});
  assert.deepEqual(commonPoint(h([0, 0], [2, 10]), h([0, 0], [1, 20]), at(30)), {kind: 'common', lsn: 10});
  assert.deepEqual(commonPoint(h([0, 0], [2, 20]), h([0, 0], [1, 10]), at(30)), {kind: 'common', lsn: 10});
  assert.deepEqual(commonPoint(h([0, 0], [2, 20]), h([0, 0], [1, 25]), at(15)), {kind: 'common', lsn: 15});
  assert.equal(commonPoint(h([1, 0]), h([0, 0]), at(9)).kind, 'none');
  assert.equal(commonPoint(h([0, 0], [1, 5]), h([0, 0], [1, 6]), at(9)).kind, 'none');
  assert.deepEqual(cutHistory(h([0, 0], [1, 5], [2, 9]), at(5)), h([0, 0], [1, 5]));
});
