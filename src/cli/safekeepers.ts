/** `pagoda safekeepers …`: what an operator does with safekeepers, asked of the control plane's internal routes. */
import {systemClock} from '#runtime/clock.ts';
import {printLine} from '#runtime/process.ts';
import {type Arguments, parsePort, UsageError} from '#cli/arguments.ts';
import {type InternalClient, connectInternally} from '#cli/internal-client.ts';
import type {Layout} from '#cli/layout.ts';

export const safekeepersOptions = {
  '--to': 'value',
  '--branch': 'value',
  '--host': 'value',
  '--port': 'value',
  '--http-port': 'value',
  '--zone': 'value',
  '--members': 'value',
  '--wait': 'flag',
} as const;

export const safekeepersHelp = `  pagoda safekeepers list          nodes, zones, how many branches each holds
  pagoda safekeepers add ID --port N --http-port N [--host H] [--zone Z]
                         a node that may take branches from now on
  pagoda safekeepers replace ID [--to ID] [--branch BRANCH] [--wait]
                         another one takes its place, while writes go on
  pagoda safekeepers operations    replacements and restores, and what they wait for
  pagoda safekeepers wal BRANCH    where the WAL of a branch is, and how much would survive the loss of all disks
  pagoda safekeepers restore BRANCH [--members ID,ID,ID] [--wait]
                         all its safekeepers have lost their disks: it comes back from the object store
`;

type Json = Readonly<Record<string, unknown>>;

export async function safekeepers(args: Arguments, layout: Layout): Promise<void> {
  const [action = 'list', subject] = args.words;
  const {options} = args;
  const ask = (await connectInternally(layout)).askControl;
  switch (action) {
    case 'list': {
      const {safekeepers: nodes} = (await ask('GET', '/safekeepers')) as {safekeepers: Json[]};
      for (const node of nodes)
        printLine(
          `safekeeper ${String(node['nodeId'])}  ${String(node['host'])}:${String(node['port'])}  zone ${String(node['zone'] ?? '-')}  ${String(node['timelines'])} branches${node['retired'] === true ? '  retired' : ''}`,
        );
      return;
    }
    case 'add': {
      const port = options.get('--port');
      const httpPort = options.get('--http-port');
      if (port === undefined || httpPort === undefined) throw new UsageError('add needs --port and --http-port');
      const zone = options.get('--zone');
      await ask('PUT', `/safekeepers/${nodeId(subject)}`, {
        host: options.get('--host') ?? '127.0.0.1',
        port: parsePort('--port', port),
        httpPort: parsePort('--http-port', httpPort),
        retired: false,
        ...(zone === undefined ? {} : {zone}),
      });
      return;
    }
    case 'replace': {
      const to = options.get('--to');
      const branchId = options.get('--branch');
      const {operations} = (await ask('POST', '/safekeepers/replace', {
        from: nodeId(subject),
        ...(to === undefined ? {} : {to: nodeId(to)}),
        ...(branchId === undefined ? {} : {branchId}),
      })) as {operations: Json[]};
      for (const o of operations)
        printLine(`${String(o['branchId'])}: safekeeper ${String(o['to'])} takes the place of ${subject!}`);
      if (operations.length === 0) printLine(`no branch is on safekeeper ${subject!}`);
      if (options.has('--wait'))
        await wait(
          ask,
          operations.map((o) => String(o['operationId'])),
        );
      return;
    }
    case 'operations': {
      const {operations} = (await ask('GET', '/safekeepers/operations')) as {operations: Json[]};
      for (const operation of operations) printLine(describe(operation));
      return;
    }
    case 'wal': {
      if (subject === undefined) throw new UsageError('name the branch: pagoda safekeepers wal BRANCH');
      printLine(JSON.stringify(await ask('GET', `/branches/${subject}/wal`), undefined, 2));
      return;
    }
    case 'restore': {
      if (subject === undefined) throw new UsageError('name the branch: pagoda safekeepers restore BRANCH');
      const members = options.get('--members')?.split(',').map(nodeId);
      const answer = await ask('POST', `/branches/${subject}/restore_from_archive`, members && {members});
      printLine(`the object store has ${subject} up to ${String(answer['lsn'])}`);
      if (options.has('--wait')) await wait(ask, [String(answer['operationId'])]);
      return;
    }
    default:
      throw new UsageError(`unknown command safekeepers ${action}; see \`pagoda help\``);
  }
}

type Ask = InternalClient['askControl'];

/** Prints each change; throws when an operation failed. */
async function wait(ask: Ask, ids: readonly string[]): Promise<void> {
  const said = new Map<string, string>();
  for (;;) {
    const {operations} = (await ask('GET', '/safekeepers/operations')) as {operations: Json[]};
    const ours = operations.filter((o) => ids.includes(String(o['operationId'])));
    for (const operation of ours) {
      const text = describe(operation);
      if (said.get(String(operation['operationId'])) === text) continue;
      said.set(String(operation['operationId']), text);
      printLine(text);
    }
    const failed = ours.find((o) => o['status'] === 'failed');
    if (failed) throw new UsageError(`${String(failed['branchId'])}: ${String(failed['error'])}`);
    if (ours.every((o) => o['status'] === 'finished' || o['status'] === 'skipped')) return;
    await systemClock.sleep(300);
  }
}

function describe(operation: Json): string {
  const {branchId, kind, status, phase, waitsFor, lsn, error} = operation;
  const running = status === 'running' || status === 'scheduling';
  return [
    `${String(branchId)}  ${String(kind)}: ${String(status)}`,
    ...(running && phase !== undefined ? [`${String(phase)}, waits for ${String(waitsFor)}`] : []),
    ...(lsn === undefined ? [] : [`goes on at ${String(lsn)}`]),
    ...(error === undefined ? [] : [String(error)]),
  ].join('; ');
}

function nodeId(text: string | undefined): number {
  const id = Number(text);
  if (!Number.isSafeInteger(id) || id < 1) throw new UsageError('name a safekeeper by its number');
  return id;
}
