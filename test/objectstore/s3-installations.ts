/**
 * `node --import` of this before a test file: every Pagoda that the file starts without an object store of its own keeps its objects
 * on Ceph RGW behind faults. For files that start one installation; the nightly run does so with those of test/system.
 */
import assert from 'node:assert/strict';
import {after} from 'node:test';
import {TestStore} from './stores.ts';

const store = await TestStore.open('s3 behind faults');
process.env['PAGODA_OBJECT_STORE'] = store.url;
after(async () => {
  await store[Symbol.asyncDispose]();
  assert.ok(store.faults > 0, 'the store made no fault');
});
