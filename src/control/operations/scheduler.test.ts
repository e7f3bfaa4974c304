import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import fc from 'fast-check';
import {OperationScheduler, type ScheduledOperation} from './scheduler.ts';

test('operations that share a lock run in order, others at once', () => {
  const scheduler = new OperationScheduler();
  assert.deepEqual(
    scheduler.submit([
      {id: 'create', seq: 1, locks: ['branch:a']},
      {id: 'start', seq: 2, locks: ['branch:a', 'endpoint:e']},
      {id: 'suspend', seq: 3, locks: ['endpoint:e']},
      {id: 'elsewhere', seq: 4, locks: ['branch:b']},
    ]),
    ['create', 'elsewhere'],
  );
  assert.deepEqual(
    scheduler.submit([{id: 'start', seq: 2, locks: ['branch:a', 'endpoint:e']}]),
    [],
    'it is known already',
  );
  assert.deepEqual(scheduler.finish('create'), ['start']);
  assert.deepEqual(scheduler.finish('elsewhere'), []);
  assert.deepEqual(scheduler.finish('start'), ['suspend']);
  assert.deepEqual(scheduler.finish('suspend'), []);
  assert.equal(scheduler.unfinishedCount, 0);
  assert.throws(() => scheduler.finish('suspend'));
});

test('every history ends with nothing left over, never two at once on one lock', () => {
  const operation = fc.record({
    locks: fc.uniqueArray(fc.constantFrom('a', 'b', 'c', 'd'), {minLength: 1, maxLength: 3}),
  });
  fc.assert(
    fc.property(
      fc.array(operation, {maxLength: 40}),
      fc.integer({min: 1, max: 4}),
      fc.infiniteStream(fc.nat()),
      (drafts, runningMax, choices) => {
        const scheduler = new OperationScheduler(runningMax);
        const all: ScheduledOperation[] = drafts.map(({locks}, i) => ({id: `${i}`, seq: i, locks}));
        const running = new Map<string, ScheduledOperation>();
        const ended: string[] = [];
        const started = (ids: readonly string[]): void => {
          for (const id of ids) {
            const starting = all[Number(id)]!;
            for (const other of running.values()) assert.ok(!other.locks.some((lock) => starting.locks.includes(lock)));
            for (const earlier of all.slice(0, starting.seq))
              if (!ended.includes(earlier.id) && submitted > earlier.seq)
                assert.ok(!earlier.locks.some((lock) => starting.locks.includes(lock)));
            running.set(id, starting);
          }
          assert.ok(running.size <= runningMax);
        };
        let submitted = 0;
        while (submitted < all.length || running.size > 0) {
          const choice = choices.next().value as number;
          if (submitted < all.length && (choice % 2 === 0 || running.size === 0)) {
            const count = 1 + (choice % 3);
            const batch = all.slice(submitted, submitted + count);
            submitted += batch.length;
            started(scheduler.submit(batch));
          } else {
            const ids = [...running.keys()];
            const id = ids[choice % ids.length]!;
            running.delete(id);
            ended.push(id);
            started(scheduler.finish(id));
          }
        }
        assert.equal(ended.length, all.length);
        assert.equal(scheduler.unfinishedCount, 0);
      },
    ),
    {numRuns: 300},
  );
});
