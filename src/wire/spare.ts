/**
 * A spare process: started before there is anything for it to do, because starting Node and loading a role takes longer than
 * most of what a waiting client waits for.
 *
 *   pagoda <role> --config MARK --spare
 *
 * prints `spareReadyLine` when it is ready, and takes one line on standard input: a SpareTask. From then on it is the process
 * it would have been with `--config <task.config>`. MARK is no file; it names the process in the machine's process table.
 * When standard input ends before a task came, it ends.
 */
export interface SpareTask {
  /** Path of its configuration. */
  readonly config: string;
  /** Its log goes there from now on. */
  readonly logFile?: string;
}

export const spareReadyLine = '{"spare":true}';
