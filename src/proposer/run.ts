/**
 * The proposer as a process of its own, started by the compute agent.
 *
 * Standard output: one ProposerEvent (driver.ts) per line, JSON. Standard input, one JSON object per line:
 *   {"event":"stream","socketDir":"/…","port":5432,"user":"…","throttlePath":"/…"}   Postgres is up: stream from it
 *   {"event":"token","token":"…"}                                a newer token
 * The end of standard input means that the agent is gone: the proposer stops.
 *
 * `elected.lsn` is the end of the last committed record, rounded up to 8. If it lies on a page boundary (or segment
 * boundary), the page's header follows it and then the next record: the compute's WAL must have that header too, and
 * START_REPLICATION begins with it.
 *
 * Exit codes: 0 stopped, 3 fenced.
 */
import {type ProposerConfig, parseProposerConfig} from '#proposer/config.ts';
import {ProposerDriver} from '#proposer/driver.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {createLog} from '#runtime/log.ts';
import {exitProcess, onStdinLine, printLine} from '#runtime/process.ts';
import {systemRandom} from '#runtime/random.ts';

export const exitFenced = 3;

export async function runProposer(given: ProposerConfig): Promise<{stop(): Promise<void>}> {
  const config = parseProposerConfig(given);
  const log = createLog({component: 'proposer', fields: {tenant: config.tenantId, timeline: config.timelineId}});
  const driver = new ProposerDriver({
    config,
    clock: systemClock,
    random: systemRandom,
    disk: systemDisk,
    log,
    onEvent: (event) => {
      printLine(JSON.stringify(event));
      if (event.event === 'fenced') exitProcess(exitFenced);
      if (event.event === 'stopped') exitProcess(0);
    },
  });
  onStdinLine(
    (line) => {
      try {
        const command = JSON.parse(line) as Record<string, unknown>;
        if (
          command['event'] === 'stream' &&
          typeof command['socketDir'] === 'string' &&
          typeof command['user'] === 'string'
        )
          driver.stream({
            address: {path: `${command['socketDir']}/.s.PGSQL.${Number(command['port'])}`},
            user: command['user'],
            ...(typeof command['throttlePath'] === 'string' ? {throttlePath: command['throttlePath']} : {}),
          });
        else if (command['event'] === 'token' && typeof command['token'] === 'string')
          driver.setToken(command['token']);
        else log.warn('unknown command on standard input', {event: command['event']});
      } catch (error) {
        log.warn('standard input is not JSON', {error});
      }
    },
    () => {
      driver.stop();
      exitProcess(0);
    },
  );
  return {
    async stop() {
      driver.stop();
    },
  };
}
