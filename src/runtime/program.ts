/** How this program was called. */

/** Arguments after the script's name. */
export const programArguments: readonly string[] = process.argv.slice(2);
export const workingDirectory = process.cwd();

export function printErrorLine(text: string): void {
  process.stderr.write(`${text}\n`);
}
