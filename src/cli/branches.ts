/** `pagoda branches …`: what the API of branches has no word for, asked of the control plane's internal routes. */
import {systemClock} from '#runtime/clock.ts';
import {printLine} from '#runtime/process.ts';
import {type Arguments, UsageError} from '#cli/arguments.ts';
import {connectInternally, onePlace} from '#cli/internal-client.ts';
import type {Layout} from '#cli/layout.ts';

export const branchesOptions = {'--wait': 'flag'} as const;

export const branchesHelp = `  pagoda branches detach BRANCH [--wait]
                         cut it off from its parent, which can be deleted then; it is used meanwhile, and keeps its own
                         history: what came before its branch point stays the parent's
`;

export async function branches(args: Arguments, layout: Layout): Promise<void> {
  const [action, subject] = args.words;
  if (action !== 'detach' || subject === undefined) throw new UsageError('pagoda branches detach BRANCH [--wait]');
  const client = await connectInternally(layout);
  const {branchId, name} = await onePlace(client, subject);
  const path = `/branches/${branchId}/detach`;
  const {parentId} = await client.askControl('GET', path);
  if (parentId === undefined) return printLine(`branch ${name} has no parent`);
  await client.askControl('POST', path);
  printLine(`branch ${name} is being detached from ${String(parentId)}`);
  if (!args.options.has('--wait')) return;
  for (let said = ''; ;) {
    const {parentId: left, error} = await client.askControl('GET', path);
    if (left === undefined) return printLine('done');
    if (typeof error === 'string' && error !== said) printLine(`waits: ${(said = error)}`);
    await systemClock.sleep(500);
  }
}
