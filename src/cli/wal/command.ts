/** `pagoda wal dump` and `pagoda wal fsck`. */
import {type Lsn, parseLsn} from '#postgres/lsn.ts';
import {printLine} from '#runtime/process.ts';
import {type Arguments, UsageError} from '#cli/arguments.ts';
import type {Layout} from '#cli/layout.ts';
import {dumpWal} from '#cli/wal/dump.ts';
import {fsckTimeline} from '#cli/wal/fsck.ts';
import {joined, locateWal} from '#cli/wal/locate.ts';

export const walOptions = {
  '--start': 'value',
  '--end': 'value',
  '--rmgr': 'value',
  '--limit': 'value',
  '--stats': 'flag',
} as const;

const usage = 'pagoda wal dump|fsck BRANCH|FOLDER [--start LSN] [--end LSN] [--rmgr NAME] [--stats] [--limit N]';

export async function wal(args: Arguments, layout: Layout): Promise<void> {
  const [command, where] = args.words;
  if (where === undefined || args.words.length !== 2) throw new UsageError(usage);
  switch (command) {
    case 'dump':
      return await dump(where, args, layout);
    case 'fsck':
      return await fsck(where, layout);
    default:
      throw new UsageError(usage);
  }
}

async function dump(where: string, args: Arguments, layout: Layout): Promise<void> {
  const start = lsnOption(args, '--start');
  const end = lsnOption(args, '--end');
  const rmgr = args.options.get('--rmgr');
  const limit = args.options.get('--limit');
  if (limit !== undefined && !/^[1-9]\d{0,9}$/.test(limit))
    throw new UsageError('--limit takes a whole number from 1 on');
  const sources = (await locateWal(where, layout)).map(joined).filter((source) => source !== undefined);
  if (sources.length === 0) throw new UsageError(`there is no WAL of ${where} on this machine or in the archive yet`);
  try {
    await dumpWal(
      sources,
      {
        ...(start === undefined ? {} : {start}),
        ...(end === undefined ? {} : {end}),
        ...(rmgr === undefined ? {} : {rmgr}),
        ...(limit === undefined ? {} : {limit: Number(limit)}),
        stats: args.options.has('--stats'),
      },
      printLine,
    );
  } finally {
    for (const source of sources) source.close();
  }
}

async function fsck(where: string, layout: Layout): Promise<void> {
  let problems = 0;
  for (const {name, folders, archive} of await locateWal(where, layout)) {
    printLine(name);
    if (folders.length === 0 && archive === undefined) printLine('ok   nothing was written yet');
    problems += await fsckTimeline(folders, archive, printLine);
    for (const folder of folders) folder.close();
  }
  if (problems > 0) throw new UsageError(`${problems} problem${problems === 1 ? '' : 's'}`);
}

function lsnOption(args: Arguments, name: string): Lsn | undefined {
  const text = args.options.get(name);
  if (text === undefined) return undefined;
  try {
    return parseLsn(text);
  } catch (error) {
    throw new UsageError(`${name}: ${(error as Error).message}`);
  }
}
