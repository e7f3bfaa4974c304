/** The client of `bench -- stalls --reads`, a thread of its own: the server's turns of the event loop are not its. */
import {parentPort, workerData} from 'node:worker_threads';
import type {Lsn} from '#postgres/lsn.ts';
import type {RelTag} from '#postgres/relation.ts';
import {PagesClient} from '#wire/pages.ts';

export interface ReadsOptions {
  readonly port: number;
  readonly token: string;
  readonly tenantId: string;
  readonly timelineId: string;
  readonly rel: RelTag;
  readonly blocks: number;
  readonly requestLsn: Lsn;
}

/** In answer to any message; then everything is counted anew. */
export interface ReadsAnswer {
  /** Of each request. */
  readonly ms: readonly number[];
  /** Requests that were not sent, because `waitingMax` waited already: the machine is too slow for the figures to mean anything. */
  readonly notSent: number;
}

const everyMs = 2;
const waitingMax = 64;

const {port, token, tenantId, timelineId, rel, blocks, requestLsn} = workerData as ReadsOptions;
const client = await PagesClient.connect({host: '127.0.0.1', port}, token, tenantId, timelineId);
let ms: number[] = [];
let notSent = 0;
const waiting = new Set<Promise<void>>();

async function read(into: number[]): Promise<void> {
  const sent = performance.now();
  await client.getPages(rel, Math.floor(Math.random() * blocks), 1, {requestLsn});
  into.push(performance.now() - sent);
}

let next = performance.now();
setInterval(() => {
  for (; next <= performance.now(); next += everyMs) {
    if (waiting.size >= waitingMax) {
      notSent++;
      continue;
    }
    const one = read(ms).finally(() => waiting.delete(one));
    waiting.add(one);
  }
}, 1);

parentPort!.on('message', () => {
  const answer: ReadsAnswer = {ms, notSent};
  ms = [];
  notSent = 0;
  void Promise.all(waiting).then(() => parentPort!.postMessage(answer));
});
