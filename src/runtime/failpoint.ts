/**
 * Places where a test may end, stop or fail this process: one before and one after every durable step. Named
 * `role.step.before` and `role.step.after`. A no-op (one comparison) unless the environment arms it.
 *
 * - `PAGODA_FAILPOINT=name:nth[:action]` arms one for the life of the process.
 * - `PAGODA_FAILPOINT_FILE=path` lets a test arm running processes: the file holds one line
 *   `name:nth[:action[:pid]]`; a process takes the file away (a rename to `path.fired`, so exactly one process does)
 *   before it acts. Without the file nothing is armed. The nth call is counted in each process by itself, from the
 *   moment it saw the line.
 *
 * Actions: `kill` (the default: SIGKILL to itself, nothing is flushed), `exit` (status 86), `pause=ms` (the whole
 * process stands still), `error` (throws an Error with code EIO).
 */
import {readFileSync, renameSync} from 'node:fs';

interface Armed {
  readonly name: string;
  readonly nth: number;
  readonly action: string;
}

const file = process.env['PAGODA_FAILPOINT_FILE'];
const fixed = process.env['PAGODA_FAILPOINT'];
let armed: Armed | undefined = fixed === undefined || fixed === '' ? undefined : parse(fixed);
let line = '';
let calls = 0;
const active = armed !== undefined || file !== undefined;

export function failpoint(name: string): void {
  if (active) check(name);
}

function check(name: string): void {
  if (file !== undefined) readArmed(file);
  if (armed?.name !== name || ++calls < armed.nth) return;
  const {action} = armed;
  armed = undefined;
  if (file !== undefined) {
    try {
      renameSync(file, `${file}.fired`);
    } catch {
      return; // another process was first
    }
  }
  act(name, action);
}

function readArmed(path: string): void {
  let text = '';
  try {
    text = readFileSync(path, 'utf8').trim();
  } catch {
    // not armed
  }
  if (text === line) return;
  line = text;
  calls = 0;
  armed = text === '' ? undefined : parse(text);
}

function parse(text: string): Armed | undefined {
  const [name, nth = '1', action = 'kill', pid] = text.split(':');
  if (!name || !/^\d+$/.test(nth) || !/^(kill|exit|error|pause=\d+)$/.test(action))
    throw new Error(`a failpoint is armed as name:nth[:kill|exit|error|pause=ms[:pid]], not ${JSON.stringify(text)}`);
  if (pid !== undefined && pid !== '' && Number(pid) !== process.pid) return undefined;
  return {name, nth: Number(nth), action};
}

function act(name: string, action: string): void {
  process.stderr.write(`failpoint ${name}: ${action}\n`);
  if (action === 'exit') process.exit(86);
  if (action === 'error') throw Object.assign(new Error(`failpoint ${name}: EIO: i/o error`), {code: 'EIO', errno: -5});
  const pause = /^pause=(\d+)$/.exec(action);
  if (pause) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, Number(pause[1]));
    return;
  }
  process.kill(process.pid, 'SIGKILL');
  // The signal is delivered at the end of a system call; no instruction of ours may run after it.
  for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000);
}
