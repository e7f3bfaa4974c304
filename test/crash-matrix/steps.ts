/** The durable steps of the roles, read from the code: every name that a failpoint has. */
import {readFileSync, readdirSync} from 'node:fs';
import {join} from 'node:path';

const source = join(import.meta.dirname, '../../src');

export interface Step {
  readonly name: string;
  /** First part of the name: safekeeper, proposer, pageserver, control, disk, … */
  readonly role: string;
  readonly file: string;
}

export function stepsInCode(): Step[] {
  const found = new Map<string, Step>();
  for (const file of readdirSync(source, {recursive: true, encoding: 'utf8'}).sort()) {
    if (!file.endsWith('.ts') || file.endsWith('.test.ts') || file === 'runtime/failpoint.ts') continue;
    const text = readFileSync(join(source, file), 'utf8');
    if (!text.includes('failpoint(')) continue;
    // A call with a computed name takes it from a table of the same file, whose names have this form too.
    for (const [, name, role] of text.matchAll(/'(([a-z]+)(?:\.[a-z0-9-]+)+\.(?:before|after))'/g))
      found.set(name!, {name: name!, role: role!, file});
    for (const [call, argument] of text.matchAll(/failpoint\(([^)]*)\)/g))
      if (!/^'(?:[a-z]+)(?:\.[a-z0-9-]+)+\.(?:before|after)'$/.test(argument!) && !/^\w+Points\[/.test(argument!))
        throw new Error(`${file}: ${call} has no name of the form 'role.step.before' or '….after'`);
  }
  return [...found.values()];
}
