import assert from 'node:assert/strict';
import {test} from 'node:test';
import {PageserverHealth} from '#control/pageserver-health.ts';

const limits = {tickMs: 500, deadAfterMs: 2000, hungAfterMs: 4000, graceMs: 20_000};

/** Ticks of both nodes, of which those in `answering` answer, and the others refuse. */
function world(): {
  health: PageserverHealth;
  run: (ticks: number, answering: readonly number[], tickMs?: number) => string[];
} {
  const health = new PageserverHealth(limits);
  let nowMs = 1000;
  return {
    health,
    run(ticks, answering, tickMs = 500) {
      const said: string[] = [];
      for (let i = 0; i < ticks; i++) {
        nowMs += tickMs;
        const outputs = health.step({kind: 'tick', nowMs, nodes: [1, 2]});
        for (const nodeId of [1, 2])
          outputs.push(...health.step({kind: answering.includes(nodeId) ? 'answered' : 'refused', nodeId}));
        said.push(...outputs.map((output) => `${output.kind} ${output.nodeId}`));
      }
      return said;
    },
  };
}

test('a node is dead after two seconds of silence, once, and back with its first answer', () => {
  const {health, run} = world();
  assert.deepEqual(run(5, [1, 2]), ['back 1', 'back 2']);
  assert.deepEqual(run(3, [1]), []);
  assert.deepEqual(run(1, [1]), ['dead 2']);
  assert.ok(health.isDead(2) && health.isAlive(1));
  assert.deepEqual(run(100, [1]), []);
  assert.deepEqual(run(1, [1, 2]), ['back 2']);
  assert.ok(health.isAlive(2));
});

test('a short silence is none: it is counted anew from each answer', () => {
  const {run} = world();
  run(2, [1, 2]);
  for (let i = 0; i < 10; i++) assert.deepEqual([...run(2, [1]), ...run(1, [1, 2])], []);
});

test('a control plane that was stopped kills nobody', () => {
  const {run} = world();
  run(3, [1, 2]);
  // Its timer fires before the answers of the pause are read; then it is stopped again and again.
  for (let i = 0; i < 20; i++) assert.deepEqual(run(1, [], 60_000), []);
  assert.deepEqual(run(2, []), []);
  assert.deepEqual(run(2, [1, 2]), []);
});

test('a node that has never answered may be starting', () => {
  const {run} = world();
  assert.deepEqual(run(40, [1]), ['back 1']);
  assert.deepEqual(run(1, [1]), ['dead 2']);
});

test('a node that accepts connections and does not answer gets more time', () => {
  const {health, run} = world();
  run(3, [1, 2]);
  const said: string[] = [];
  for (let tick = 1; tick <= 12; tick++)
    for (const {kind} of health.step({kind: 'tick', nowMs: 2500 + tick * 500, nodes: [1]}))
      said.push(`${kind} ${tick}`);
  assert.deepEqual(said, ['dead 8']);
});
