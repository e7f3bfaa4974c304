import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import {parseArguments, parsePort, UsageError} from './arguments.ts';
import {internalPorts} from './layout.ts';

const known = {'--data': 'value', '-o': 'value', '--loud': 'flag'} as const;

test('options with and without values, words between them', () => {
  const {words, options} = parseArguments(['a', '--data', '/x', '-o=json', '--loud', 'b'], known);
  assert.deepEqual(words, ['a', 'b']);
  assert.deepEqual(
    [...options],
    [
      ['--data', '/x'],
      ['-o', 'json'],
      ['--loud', 'true'],
    ],
  );
});

test('what cannot be right is said', () => {
  for (const argv of [['--what'], ['--data'], ['--data='], ['--loud=1']])
    assert.throws(() => parseArguments(argv, known), UsageError, argv.join(' '));
  for (const port of ['0', '65536', 'x', '1.5', '-1']) assert.throws(() => parsePort('--port', port), /--port/);
  assert.equal(parsePort('--port', '54320'), 54320);
});

test('the internal block holds every role once', () => {
  const ports = internalPorts(100);
  const all = [ports.broker, ports.pageserver, ports.pageserverHttp, ports.control];
  for (const nodeId of [1, 2, 3]) all.push(ports.safekeeper(nodeId), ports.safekeeperHttp(nodeId));
  assert.equal(new Set(all).size, all.length);
  assert.ok(all.every((port) => port >= 100 && port < 120));
});
