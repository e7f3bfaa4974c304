/** How this program was called. */

/** Arguments after the script's name. */
export const programArguments: readonly string[] = process.argv.slice(2);
/** Of Node, without the `v`. */
export const nodeVersion = process.versions.node;
export const workingDirectory = process.cwd();

export function printErrorLine(text: string): void {
  process.stderr.write(`${text}\n`);
}
