import {spawn} from 'node:child_process';

export interface StepResult {
  readonly name: string;
  readonly ok: boolean;
  readonly seconds: number;
}

/** Runs one step with its output passed through. */
export async function run(
  name: string,
  command: string,
  args: readonly string[],
  options: {env?: Record<string, string>} = {},
): Promise<StepResult> {
  const started = performance.now();
  process.stdout.write(`\n── ${name}\n`);
  const child = spawn(command, args, {stdio: ['ignore', 'inherit', 'inherit'], env: {...process.env, ...options.env}});
  const ok = await new Promise<boolean>((resolve) => {
    child.on('error', (error) => {
      process.stdout.write(`${name}: ${error.message}\n`);
      resolve(false);
    });
    child.on('close', (code) => resolve(code === 0));
  });
  return {name, ok, seconds: (performance.now() - started) / 1000};
}

/** Prints a line a step; the exit code. */
export function summarise(results: readonly StepResult[]): number {
  process.stdout.write('\n');
  for (const r of results)
    process.stdout.write(`${r.ok ? 'ok    ' : 'FAILED'} ${r.name} (${r.seconds.toFixed(1)} s)\n`);
  return results.every((r) => r.ok) ? 0 : 1;
}
