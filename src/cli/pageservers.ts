/** `pagoda pageservers …`: what an operator does with pageservers, asked of the control plane's internal routes. */
import {systemClock} from '#runtime/clock.ts';
import {printLine} from '#runtime/process.ts';
import {type Arguments, parsePort, UsageError} from '#cli/arguments.ts';
import {type InternalClient, connectInternally} from '#cli/internal-client.ts';
import type {Layout} from '#cli/layout.ts';

export const pageserversOptions = {
  '--to': 'value',
  '--host': 'value',
  '--port': 'value',
  '--http-port': 'value',
  '--zone': 'value',
  '--wait': 'flag',
} as const;

export const pageserversHelp = `  pagoda pageservers list          nodes, zones, what each holds and keeps ready, whether it answers
  pagoda pageservers add ID --port N --http-port N [--host H] [--zone Z]
                         a node that may hold projects from now on
  pagoda pageservers migrate PROJECT|TENANT|SHARD --to ID [--wait]
                         moves a project, or one shard of it, while it is read and written to
  pagoda pageservers drain ID [--wait]
                         it takes nothing new, and everything that it holds moves away
  pagoda pageservers operations    migrations, and how far they are
`;

type Json = Readonly<Record<string, unknown>>;
type Ask = InternalClient['askControl'];

export async function pageservers(args: Arguments, layout: Layout): Promise<void> {
  const [action = 'list', subject] = args.words;
  const {options} = args;
  const ask = (await connectInternally(layout)).askControl;
  switch (action) {
    case 'list': {
      const {pageservers: nodes} = (await ask('GET', '/pageservers')) as {pageservers: Json[]};
      for (const node of nodes)
        printLine(
          `pageserver ${String(node['nodeId'])}  ${String(node['host'])}:${String(node['port'])}  zone ${String(node['zone'] ?? '-')}  holds ${String(node['attached'])}, keeps ${String(node['secondary'])} ready${node['retired'] === true ? '  retired' : ''}${node['answers'] === true ? '' : '  DOES NOT ANSWER'}`,
        );
      return;
    }
    case 'add': {
      const port = options.get('--port');
      const httpPort = options.get('--http-port');
      if (port === undefined || httpPort === undefined) throw new UsageError('add needs --port and --http-port');
      const zone = options.get('--zone');
      await ask('PUT', `/pageservers/${nodeId(subject)}`, {
        host: options.get('--host') ?? '127.0.0.1',
        port: parsePort('--port', port),
        httpPort: parsePort('--http-port', httpPort),
        retired: false,
        ...(zone === undefined ? {} : {zone}),
      });
      return;
    }
    case 'migrate': {
      const to = options.get('--to');
      if (subject === undefined || to === undefined)
        throw new UsageError('name the project or shard and where it goes: pagoda pageservers migrate PROJECT --to ID');
      await follow(ask, await ask('POST', '/pageservers/migrate', {tenantId: subject, to: nodeId(to)}), options);
      return;
    }
    case 'drain':
      await follow(ask, await ask('POST', `/pageservers/${nodeId(subject)}/drain`), options);
      return;
    case 'operations': {
      const {operations} = (await ask('GET', '/pageservers/operations')) as {operations: Json[]};
      for (const operation of operations) printLine(describe(operation));
      return;
    }
    default:
      throw new UsageError(`unknown command pageservers ${action}; see \`pagoda help\``);
  }
}

/** Says what was begun, and with --wait how it goes on. Throws when one of them failed. */
async function follow(ask: Ask, begun: Json, options: ReadonlyMap<string, string>): Promise<void> {
  const started = begun['operations'] as Json[];
  for (const operation of started) printLine(describe({...operation, status: 'begun'}));
  if (started.length === 0) printLine('there is nothing to move');
  if (!options.has('--wait')) return;
  const ids = started.map((operation) => operation['operationId']);
  const said = new Map<unknown, string>();
  for (;;) {
    const {operations} = (await ask('GET', '/pageservers/operations')) as {operations: Json[]};
    const ours = operations.filter((operation) => ids.includes(operation['operationId']));
    for (const operation of ours) {
      const text = describe(operation);
      if (said.get(operation['operationId']) === text) continue;
      said.set(operation['operationId'], text);
      printLine(text);
    }
    const failed = ours.find((operation) => operation['status'] === 'failed');
    if (failed) throw new UsageError(`${String(failed['shardId'])}: ${String(failed['error'])}`);
    if (ours.every(({status}) => status === 'finished' || status === 'skipped')) return;
    await systemClock.sleep(200);
  }
}

function describe({shardId, from, to, status, step, error}: Json): string {
  return [
    `${String(shardId)}  ${from === undefined ? '' : `from pageserver ${String(from)} `}to ${String(to)}: ${String(status)}`,
    ...(step === undefined ? [] : [`at ${String(step)}`]),
    ...(error === undefined ? [] : [String(error)]),
  ].join('; ');
}

function nodeId(text: string | undefined): number {
  const id = Number(text);
  if (!Number.isSafeInteger(id) || id < 1) throw new UsageError('name a pageserver by its number');
  return id;
}
