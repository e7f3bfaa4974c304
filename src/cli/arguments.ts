/** Command-line arguments: `--name value`, `--name=value`, `-o value`, flags without a value, and plain words. */

/** The user typed something that cannot be right; the message is all that is printed. */
export class UsageError extends Error {}

export interface Arguments {
  readonly words: readonly string[];
  readonly options: ReadonlyMap<string, string>;
}

/** `known` maps each option to whether it takes a value. Throws UsageError for anything else. */
export function parseArguments(argv: readonly string[], known: Readonly<Record<string, 'value' | 'flag'>>): Arguments {
  const words: string[] = [];
  const options = new Map<string, string>();
  for (let i = 0; i < argv.length; i++) {
    const argument = argv[i]!;
    if (!argument.startsWith('-') || argument === '-') {
      words.push(argument);
      continue;
    }
    const equals = argument.indexOf('=');
    const name = equals < 0 ? argument : argument.slice(0, equals);
    const kind = known[name];
    if (kind === undefined) throw new UsageError(`unknown option ${name}; see \`pagoda help\``);
    if (kind === 'flag') {
      if (equals >= 0) throw new UsageError(`${name} takes no value`);
      options.set(name, 'true');
      continue;
    }
    const value = equals >= 0 ? argument.slice(equals + 1) : argv[++i];
    if (value === undefined || value === '') throw new UsageError(`${name} needs a value`);
    options.set(name, value);
  }
  return {words, options};
}

/** A TCP port given by the user. */
export function parsePort(name: string, text: string): number {
  const port = Number(text);
  if (!Number.isInteger(port) || port < 1 || port > 65535)
    throw new UsageError(`${name} must be a port number (1 to 65535), not ${JSON.stringify(text)}`);
  return port;
}
