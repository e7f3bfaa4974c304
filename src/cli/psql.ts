/** `pagoda psql`: PostgreSQL's own program at a branch of this machine. */
import {exitProcess, runAttached} from '#runtime/process.ts';
import {type Arguments, UsageError} from '#cli/arguments.ts';
import {callApi, localConnectionUri} from '#cli/first-project.ts';
import {connectInternally, onePlace} from '#cli/internal-client.ts';
import type {Layout} from '#cli/layout.ts';
import {readSupervisor} from '#cli/up.ts';

export const psqlOptions = {'--branch': 'value', '--at': 'value', '--role': 'value', '--database': 'value'} as const;

export const psqlHelp = `  pagoda psql [--branch B] [--at LSN|TIME] [--role R] [--database D] [-- PSQL ARGUMENTS]
                         psql at a branch; with --at read-only, as it was then
`;

/** `rest`: what stood behind \`--\`. */
export async function psql(args: Arguments, layout: Layout, rest: readonly string[]): Promise<void> {
  if (args.words.length > 0) throw new UsageError('arguments for psql itself go behind --');
  exitProcess(await runAttached('psql', [await connectionUri(args, layout), ...rest]));
}

/** As the owner of the branch's first database, or as asked for. */
export async function connectionUri(args: Arguments, layout: Layout): Promise<string> {
  const place = await onePlace(await connectInternally(layout), args.options.get('--branch'));
  const {ports} = readSupervisor(layout)!;
  const branch = `/projects/${place.projectId}/branches/${place.branchId}`;
  const {databases} = (await callApi(layout, ports, 'GET', `${branch}/databases`)) as {
    databases: {name: string; owner_name: string}[];
  };
  const named = args.options.get('--database');
  const database = named === undefined ? databases[0] : databases.find((d) => d.name === named);
  if (database === undefined)
    throw new UsageError(
      `branch ${place.name} has no database ${named ?? ''}; it has: ${databases.map((d) => d.name).join(', ')}`,
    );
  const {endpoints} = (await callApi(layout, ports, 'GET', `${branch}/endpoints`)) as {
    endpoints: {id: string; type: string}[];
  };
  const endpoint = endpoints.find((e) => e.type === 'read_write') ?? endpoints[0];
  if (endpoint === undefined)
    throw new UsageError(
      `branch ${place.name} has no compute; add one: neon branches add-compute ${place.name} --type read_write`,
    );
  const uri = await localConnectionUri(layout, ports, {
    projectId: place.projectId,
    branchId: place.branchId,
    endpointId: endpoint.id,
    database: database.name,
    role: args.options.get('--role') ?? database.owner_name,
  });
  const at = args.options.get('--at');
  if (at === undefined) return uri;
  const point = /^[0-9A-Fa-f]+\/[0-9A-Fa-f]+$/.test(at) ? `neon_lsn:${at}` : `neon_timestamp:${at}`;
  return `${uri}${uri.includes('options=') ? '%20' : '?options='}${encodeURIComponent(point)}`;
}
