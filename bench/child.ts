/** Processes of this folder that a benchmark measures from outside. */
import {type ChildProcess, spawn} from 'node:child_process';
import {join} from 'node:path';

/** Starts a process of this folder and waits for its line of JSON. */
export function startChild(file: string, argument: string): Promise<{child: ChildProcess; ready: unknown}> {
  const child = spawn(process.execPath, [join(import.meta.dirname, file), argument], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  process.once('exit', () => child.kill('SIGKILL'));
  return new Promise((resolve, reject) => {
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString();
      const line = /^\{.*\}$/m.exec(out);
      if (line !== null) resolve({child, ready: JSON.parse(line[0])});
    });
    child.once('exit', (code) => reject(new Error(`${file} ended with ${code}`)));
  });
}

export async function endChild(child: ChildProcess): Promise<void> {
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.kill('SIGKILL');
  await exited;
}
