import assert from 'node:assert/strict';
import {test} from 'node:test';
import {systemClock} from '#runtime/clock.ts';
import {silentLog} from '#runtime/log.ts';
import {type HeldTenants, type ReAttachOptions, reAttach} from './re-attach.ts';
import type {Secondary} from './secondary/secondary.ts';
import type {Tenant} from './timeline/tenant.ts';
import {TimelineError} from './timeline/timeline-reader.ts';

/** A node whose n-th attempt at a tenant ends as told; what happened, in order, and how long was slept. */
function world(attempts: Record<string, (Error | undefined)[]>, latest: (id: string) => boolean = () => true) {
  const happened: string[] = [];
  const slept: number[] = [];
  const pageserver: ReAttachOptions['pageserver'] = {
    attach(id) {
      const error = attempts[id]!.shift();
      happened.push(`${id} ${error === undefined ? 'attached' : 'failed'}`);
      return error === undefined ? Promise.resolve({} as Tenant) : Promise.reject(error);
    },
    keepReady(id) {
      happened.push(`${id} ready`);
      return Promise.resolve({} as Secondary);
    },
    isLatest: (id) => Promise.resolve(latest(id)),
  };
  const clock = {
    ...systemClock,
    sleep(ms: number) {
      slept.push(ms);
      return Promise.resolve();
    },
  };
  const options = (asked: (HeldTenants | Error)[], isStopped = () => false): ReAttachOptions => ({
    pageserver,
    ask() {
      const answer = asked.shift()!;
      return answer instanceof Error ? Promise.reject(answer) : Promise.resolve(answer);
    },
    clock,
    log: silentLog,
    isStopped,
  });
  return {happened, slept, options};
}

const held = (...ids: string[]): HeldTenants => ({tenants: ids.map((id) => ({id, generation: 7})), secondaries: ['s']});
const storeError = new Error('object store: 503');

test('a tenant that the object store keeps away is tried again until it is there; the others do not wait', async () => {
  const w = world({a: [storeError, storeError, storeError, undefined], b: [undefined]});
  await reAttach(w.options([new Error('refused'), held('a', 'b')]));
  assert.deepEqual(w.happened, ['s ready', 'a failed', 'b attached', 'a failed', 'a failed', 'a attached']);
  assert.deepEqual(w.slept, [1000, 1000, 2000, 4000]);
});

test('a tenant that is held elsewhere since, or here under a newer generation, is left', async () => {
  const conflict = new TimelineError('conflict', 'tenant c is attached with generation 8; 7 is older');
  const w = world({a: [storeError], c: [conflict]}, () => false);
  await reAttach(w.options([held('a', 'c')]));
  assert.deepEqual(w.happened, ['s ready', 'a failed', 'c failed']);
});

test('nothing is tried again after the stop', async () => {
  let stopped = false;
  const w = world({a: [storeError]});
  await reAttach({
    ...w.options([held('a')], () => stopped),
    log: {...silentLog, error: () => (stopped = true)},
  });
  assert.deepEqual(w.happened, ['s ready', 'a failed']);
});
