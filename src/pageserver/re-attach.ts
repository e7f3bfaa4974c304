/**
 * At start: the control plane says which tenants this node holds, under new generations, and of which it keeps copies ready.
 * A tenant that cannot be loaded then, since the object store errs, is tried again until it is there, or is not ours any more:
 * nobody else would come and ask for it, and its computes wait.
 */
import type {Clock} from '#runtime/clock.ts';
import {inParallel} from '#runtime/in-parallel.ts';
import type {Log} from '#runtime/log.ts';
import type {Pageserver} from './pageserver.ts';
import {TimelineError} from './timeline/timeline-reader.ts';

const retryMs = 1000;
/** Between two attempts at the same tenant. */
const retryMsMax = 10_000;
/** Loading waits for the object store nearly all of its time. */
const atOnce = 8;

export interface HeldTenants {
  readonly tenants: readonly {readonly id: string; readonly generation: number}[];
  /** Tenants held elsewhere, kept ready here. */
  readonly secondaries: readonly string[];
}

export interface ReAttachOptions {
  readonly pageserver: Pick<Pageserver, 'attach' | 'isLatest' | 'keepReady'>;
  /** Each answer gives every tenant a new generation. */
  readonly ask: () => Promise<HeldTenants>;
  readonly clock: Clock;
  readonly log: Log;
  readonly isStopped: () => boolean;
}

/** Resolves when all are attached that still are ours, or the node is stopped. */
export async function reAttach(options: ReAttachOptions): Promise<void> {
  const {pageserver, clock, log, isStopped} = options;
  const held = await askUntilAnswered(options);
  if (held === undefined) return;
  await inParallel(held.secondaries, atOnce, async (id) => void (await pageserver.keepReady(id)));
  const complaints = new Map<string, string>();
  let left = [...held.tenants];
  for (let attempt = 0; left.length > 0 && !isStopped(); attempt++) {
    if (attempt > 0) await clock.sleep(Math.min(retryMs * 2 ** (attempt - 1), retryMsMax));
    const failed: typeof left = [];
    await inParallel(left, atOnce, async (tenant) => {
      const {id, generation} = tenant;
      try {
        // Meanwhile it may have been given to another node, or to this one anew.
        if (attempt === 0 || (await pageserver.isLatest(id, generation))) await pageserver.attach(id, generation);
      } catch (error) {
        if (error instanceof TimelineError && error.code === 'conflict') return;
        failed.push(tenant);
        const {message} = error as Error;
        if (complaints.get(id) !== message)
          log.error('tenant not attached; trying again', {tenant: id, generation, error: message});
        complaints.set(id, message);
      }
    });
    left = failed;
  }
}

async function askUntilAnswered({ask, clock, log, isStopped}: ReAttachOptions): Promise<HeldTenants | undefined> {
  for (let attempt = 1; !isStopped(); attempt++)
    try {
      return await ask();
    } catch (error) {
      if (attempt === 1) log.warn('not re-attached yet; asking again every second', {error: (error as Error).message});
      await clock.sleep(retryMs);
    }
  return undefined;
}
