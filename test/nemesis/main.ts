/**
 * `npm run nemesis -- --minutes M --seed S`: a whole Pagoda of real processes under faults, and clients that keep their books.
 * Exit status 0 only when nothing acknowledged was lost or doubled, no anomaly was seen, and the run was worth something.
 *
 *   --minutes M      how long faults go on (default 1)
 *   --seed S         what is done to whom, in which order and for how long (default 1)
 *   --think MS       what each of the twelve writing clients rests between two transactions (default 40: the whole cell then takes about
 *                    one core, and gaps tell of Pagoda, not of the machine)
 *   --only TEXT      only kinds of faults whose name contains it
 *   --strict-gaps    a commit gap above the goal fails the run (a quiet machine)
 *   --dir DIR        where it lives (default: below /tmp, removed afterwards unless it fails)
 *   --shared-net     no namespaces and file systems of their own, also as root
 *   --folder         the object store is a folder: no faults of it (else Ceph RGW, installed when it is missing)
 */
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {runNemesis, thinkMsDefault} from './run.ts';

const options = new Map<string, string>();
const flags = new Set(['--strict-gaps', '--shared-net', '--folder']);
const args = process.argv.slice(2);
for (let i = 0; i < args.length; i++) {
  const name = args[i]!;
  if (flags.has(name)) options.set(name, '');
  else if (['--minutes', '--seed', '--think', '--only', '--dir'].includes(name) && args[i + 1] !== undefined)
    options.set(name, args[++i]!);
  else throw new Error(`unknown option ${name}; see the head of test/nemesis/main.ts`);
}
const dir = options.get('--dir') ?? mkdtempSync(join(tmpdir(), 'pagoda-nemesis-'));
const only = options.get('--only');
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => process.exit(1)); // the cell cleans up at exit
const result = await runNemesis({
  dir,
  minutes: Number(options.get('--minutes') ?? 1),
  seed: Number(options.get('--seed') ?? 1),
  isolated: process.getuid?.() === 0 && !options.has('--shared-net'),
  thinkMs: Number(options.get('--think') ?? thinkMsDefault),
  s3: !options.has('--folder'),
  strictGaps: options.has('--strict-gaps'),
  ...(only === undefined ? {} : {only}),
  log: (line) => console.log(line),
});
if (result.ok) {
  if (!options.has('--dir')) rmSync(dir, {recursive: true, force: true, maxRetries: 10, retryDelay: 100});
} else console.log(`FAILED. Logs and data: ${dir}`);
process.exit(result.ok ? 0 : 1);
