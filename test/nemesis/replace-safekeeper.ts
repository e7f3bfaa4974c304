/** What an operator does about a safekeeper: another takes its place on every branch (`pagoda safekeepers replace`). */
import {setTimeout as sleep} from 'node:timers/promises';
import type {Cell} from './cell.ts';

interface Node {
  readonly nodeId: number;
  readonly host: string;
  readonly port: number;
  readonly httpPort: number;
  readonly retired?: boolean;
  readonly timelines: number;
}

interface Operation {
  readonly kind: string;
  readonly status: string;
  readonly error?: string;
}

const replacedMsMax = 60_000;
/** There is one spare: two that are to be replaced at once take turns. */
let turn: Promise<unknown> = Promise.resolve();

/** The control plane is told of the spare; it is not placed on until somebody is replaced by it. */
export async function addSpare(cell: Cell, spare: string): Promise<void> {
  const node = {...cell.addressOf(spare), retired: true};
  await cell.operate('PUT', `/safekeepers/${idOf(spare)}`, node);
}

interface ReplacingWorld {
  readonly cell: Cell;
  readonly problems: string[];
  safekeepers: readonly string[];
  spare: string;
}

/**
 * The spare takes the place of `leaving`, which becomes the spare. Other faults may go on: what is asked is asked again, by what there
 * is and not by what was answered.
 */
export async function replaceSafekeeper(world: ReplacingWorld, leaving: string): Promise<void> {
  const mine = turn.then(() => replaceNow(world, leaving));
  turn = mine;
  await mine;
}

async function replaceNow(world: ReplacingWorld, leaving: string): Promise<void> {
  const {cell, problems, spare} = world;
  if (leaving === spare) return; // the other one meant the same
  const deadline = performance.now() + replacedMsMax;
  let last = 'nothing was answered';
  for (;;) {
    try {
      if (await step(cell, idOf(leaving), idOf(spare))) break;
    } catch (error) {
      last = (error as Error).message;
    }
    if (performance.now() > deadline) {
      problems.push(`${leaving} was not replaced by ${spare} in ${replacedMsMax / 1000} s: ${last}`);
      return;
    }
    await sleep(100);
  }
  world.safekeepers = [...world.safekeepers.filter((name) => name !== leaving), spare];
  world.spare = leaving;
}

/** True when it is over. */
async function step(cell: Cell, from: number, to: number): Promise<boolean> {
  const {safekeepers} = await cell.operate<{safekeepers: Node[]}>('GET', '/safekeepers');
  const [leaving, coming] = [from, to].map((id) => safekeepers.find((n) => n.nodeId === id)!);
  const {operations} = await cell.operate<{operations: Operation[]}>('GET', '/safekeepers/operations');
  if (operations.some((o) => o.status === 'scheduling' || o.status === 'running')) return false;
  if (leaving!.timelines === 0) return true;
  if (coming!.retired) await cell.operate('PUT', `/safekeepers/${to}`, {...coming, retired: false});
  await cell.operate('POST', '/safekeepers/replace', {from, to});
  return false;
}

const idOf = (name: string): number => Number(/\d+$/.exec(name)![0]);
