/** The machine's processes by their command lines (Linux: /proc), to tell ours from others that reuse a pid. */
import * as fs from 'node:fs';

export interface ProcessEntry {
  readonly pid: number;
  readonly args: readonly string[];
}

/** The arguments a process was started with; undefined when it is gone or only a zombie. */
export function processArguments(pid: number): readonly string[] | undefined {
  try {
    const text = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8');
    // A zombie, and a kernel thread, has an empty command line.
    return text === '' ? undefined : text.replace(/\0$/, '').split('\0');
  } catch {
    return undefined;
  }
}

export function listProcesses(): ProcessEntry[] {
  const found: ProcessEntry[] = [];
  for (const name of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const pid = Number(name);
    const args = processArguments(pid);
    if (args) found.push({pid, args});
  }
  return found;
}
