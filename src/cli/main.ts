/** The one program: `pagoda <command>` for people, `pagoda <role> --config FILE` for the parts. */
import {exitProcess, printLine} from '#runtime/process.ts';
import {printErrorLine, programArguments, workingDirectory} from '#runtime/program.ts';
import {parseArguments, UsageError} from '#cli/arguments.ts';
import {Layout, portOptions} from '#cli/layout.ts';
import {roleNames, runRole} from '#cli/roles.ts';

const dataOption = {'--data': 'value'} as const;

async function main(argv: readonly string[]): Promise<void> {
  const [command = 'help', ...rest] = argv;
  if (roleNames.includes(command)) {
    const {options} = parseArguments(rest, {'--config': 'value', '--spare': 'flag'});
    await runRole(command, options.get('--config'), options.has('--spare'));
    return;
  }
  const layoutOf = (options: ReadonlyMap<string, string>): Layout => Layout.choose(options, workingDirectory);
  switch (command) {
    case 'up': {
      const args = parseArguments(rest, {
        ...dataOption,
        ...portOptions,
        '--listen': 'value',
        '--shards': 'value',
        '--pageservers': 'value',
      });
      const {up} = await import('#cli/up.ts');
      return up(args, layoutOf(args.options));
    }
    case 'stop': {
      const args = parseArguments(rest, dataOption);
      const {stop} = await import('#cli/commands.ts');
      return stop(layoutOf(args.options));
    }
    case 'status': {
      const args = parseArguments(rest, {...dataOption, '-o': 'value', '--output': 'value'});
      const {status} = await import('#cli/commands.ts');
      return status(args, layoutOf(args.options));
    }
    case 'logs': {
      const args = parseArguments(rest, dataOption);
      const {logs} = await import('#cli/commands.ts');
      return logs(args, layoutOf(args.options));
    }
    case 'psql': {
      const {psql, psqlOptions} = await import('#cli/psql.ts');
      const end = rest.indexOf('--');
      const own = end < 0 ? rest : rest.slice(0, end);
      const args = parseArguments(own, {...dataOption, ...psqlOptions});
      return psql(args, layoutOf(args.options), end < 0 ? [] : rest.slice(end + 1));
    }
    case 'import': {
      const {importAny, importOptions} = await import('#cli/import.ts');
      const args = parseArguments(rest, {...dataOption, ...importOptions});
      return importAny(args, layoutOf(args.options));
    }
    case 'export': {
      const {exportBranch, exportOptions} = await import('#cli/export.ts');
      const args = parseArguments(rest, {...dataOption, ...exportOptions});
      return exportBranch(args, layoutOf(args.options));
    }
    case 'reset': {
      const {reset, resetOptions} = await import('#cli/reset.ts');
      const args = parseArguments(rest, {...dataOption, ...resetOptions});
      return reset(args, layoutOf(args.options));
    }
    case 'doctor': {
      const args = parseArguments(rest, dataOption);
      const {doctor} = await import('#cli/doctor.ts');
      return doctor(layoutOf(args.options));
    }
    case 'wal': {
      const {wal, walOptions} = await import('#cli/wal/command.ts');
      const args = parseArguments(rest, {...dataOption, ...walOptions});
      return wal(args, layoutOf(args.options));
    }
    case 'branches': {
      const {branches, branchesOptions} = await import('#cli/branches.ts');
      const args = parseArguments(rest, {...dataOption, ...branchesOptions});
      return branches(args, layoutOf(args.options));
    }
    case 'pageservers': {
      const {pageservers, pageserversOptions} = await import('#cli/pageservers.ts');
      const args = parseArguments(rest, {...dataOption, ...pageserversOptions});
      return pageservers(args, layoutOf(args.options));
    }
    case 'safekeepers': {
      const {safekeepers, safekeepersOptions} = await import('#cli/safekeepers.ts');
      const args = parseArguments(rest, {...dataOption, ...safekeepersOptions});
      return safekeepers(args, layoutOf(args.options));
    }
    case 'scrub':
    case 'verify':
    case 'sizes':
    case 'layers': {
      const {inspect, inspectOptions} = await import('#cli/inspect/command.ts');
      const args = parseArguments(rest, {...dataOption, ...inspectOptions});
      return inspect(command, args, layoutOf(args.options));
    }
    case 'help':
    case '--help':
    case '-h': {
      const {help} = await import('#cli/help.ts');
      return printLine(help);
    }
    default:
      throw new UsageError(`unknown command ${command}; see \`pagoda help\``);
  }
}

main(programArguments).catch((error: unknown) => {
  const failure = error as Error;
  printErrorLine(`pagoda: ${failure instanceof UsageError ? failure.message : (failure.stack ?? String(failure))}`);
  exitProcess(1);
});
