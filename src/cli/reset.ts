/** `pagoda reset`: everything that this installation keeps on this machine is deleted. */
import {joinPath, systemDisk} from '#runtime/disk.ts';
import {printLine, readStdinLine} from '#runtime/process.ts';
import {systemRandom} from '#runtime/random.ts';
import {type Arguments, UsageError} from '#cli/arguments.ts';
import {stop} from '#cli/commands.ts';
import type {Layout} from '#cli/layout.ts';
import {chooseObjectStore} from '#cli/object-store-choice.ts';

export const resetOptions = {'--yes': 'flag'} as const;

export async function reset(args: Arguments, layout: Layout): Promise<void> {
  // A mistyped --data must not cost somebody a home directory.
  if (!systemDisk.exists(layout.keys) || !systemDisk.exists(layout.config))
    throw new UsageError(`${layout.data} is no data directory of Pagoda; nothing was deleted`);
  if (!args.options.has('--yes')) {
    printLine(`All projects, branches and their history in ${layout.data} will be deleted. Type yes to go on:`);
    if ((await readStdinLine())?.trim() !== 'yes') throw new UsageError('nothing was deleted');
  }
  const store = chooseObjectStore(layout, undefined, systemDisk, systemRandom);
  await stop(layout);
  for (const name of systemDisk.list(layout.data)) systemDisk.remove(joinPath(layout.data, name));
  printLine(`${layout.data} is empty`);
  if (store.kind === 's3' || store.root !== layout.objects)
    printLine(
      `what lies in ${store.kind === 's3' ? `bucket ${store.bucket}` : store.root} stays: empty it before a new installation uses it`,
    );
}
