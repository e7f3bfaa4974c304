/** `pagoda import`: a dump into a branch, by PostgreSQL's own programs; a stopped data directory as a new project. */
import {systemClock} from '#runtime/clock.ts';
import {absolutePath, joinPath, systemDisk} from '#runtime/disk.ts';
import {exitProcess, printLine, runAttached} from '#runtime/process.ts';
import {readBootstrapSuperuser} from '#postgres/bootstrap-superuser.ts';
import {databaseState, parseControlFile} from '#postgres/control-file.ts';
import {type Arguments, UsageError} from '#cli/arguments.ts';
import {callApi, localConnectionUri} from '#cli/first-project.ts';
import {connectInternally} from '#cli/internal-client.ts';
import type {Layout} from '#cli/layout.ts';
import {connectionUri} from '#cli/psql.ts';
import {readSupervisor} from '#cli/up.ts';

export const importOptions = {
  '--branch': 'value',
  '--role': 'value',
  '--database': 'value',
  '--name': 'value',
} as const;

export const importHelp = `  pagoda import FILE [--branch B] [--role R] [--database D]
                         restores a dump: a script of pg_dump, or its custom or tar format (pg_restore)
  pagoda import DIRECTORY [--name NAME]
                         a stopped data directory of PostgreSQL 15 as a new project, with its roles, passwords and databases
`;

export async function importAny(args: Arguments, layout: Layout): Promise<void> {
  const [path, ...more] = args.words;
  if (path === undefined || more.length > 0) throw new UsageError('name one file or directory: pagoda import FILE');
  const stat = systemDisk.stat(path);
  if (stat === undefined) throw new UsageError(`${path} does not exist`);
  const unfitting = stat.isDirectory ? ['--branch', '--role', '--database'] : ['--name'];
  const wrong = unfitting.find((name) => args.options.has(name));
  if (wrong !== undefined)
    throw new UsageError(
      `${wrong} does not go with a ${stat.isDirectory ? 'directory: it becomes a project' : 'dump'}`,
    );
  if (stat.isDirectory) await importDirectory(args, layout, absolutePath(path));
  else await importDump(args, layout, path);
}

async function importDump(args: Arguments, layout: Layout, file: string): Promise<void> {
  const uri = await connectionUri(args, layout);
  const code = isScript(file)
    ? await runAttached('psql', ['-X', '-q', '-v', 'ON_ERROR_STOP=1', '--single-transaction', '-f', file, uri])
    : // What belongs to roles that do not exist here belongs to the one who restores.
      await runAttached('pg_restore', ['--no-owner', '--exit-on-error', '--single-transaction', '-d', uri, file]);
  if (code !== 0) exitProcess(code); // nothing was changed: it is one transaction
  printLine(`${file} is restored`);
}

/** pg_dump's custom format begins with PGDMP; a tar has `ustar` at 257. Everything else is SQL. */
function isScript(path: string): boolean {
  const file = systemDisk.open(path, 'read');
  try {
    const head = Buffer.alloc(262);
    file.read(head, 0);
    return head.toString('latin1', 0, 5) !== 'PGDMP' && head.toString('latin1', 257, 262) !== 'ustar';
  } finally {
    file.close();
  }
}

const pollMs = 300;

async function importDirectory(args: Arguments, layout: Layout, directory: string): Promise<void> {
  const superuser = checkDirectory(directory);
  const client = await connectInternally(layout);
  const name = args.options.get('--name');
  const started = systemClock.monotonicMs();
  const made = (await client.askControl('POST', '/imports', {
    directory,
    superuser,
    ...(name === undefined ? {} : {name}),
  })) as {operationId: string; projectId: string; branchId: string; endpointId: string};
  for (;;) {
    const {status, error, missingExtensions} = await client.askControl('GET', `/imports/${made.operationId}`);
    if (status === 'failed' || status === 'skipped')
      throw new UsageError(`${directory} could not be imported: ${String(error)}`);
    if (status === 'finished') {
      const seconds = ((systemClock.monotonicMs() - started) / 1000).toFixed(1);
      printLine(`${directory} is project ${made.projectId} (branch ${made.branchId}), imported in ${seconds} s`);
      for (const extension of (missingExtensions ?? []) as string[])
        printLine(`extension ${extension} is in use there and not installed here: what it does fails until it is`);
      break;
    }
    await systemClock.sleep(pollMs);
  }
  await describe(layout, made);
}

/** Who may come in, and how. */
async function describe(
  layout: Layout,
  target: {projectId: string; branchId: string; endpointId: string},
): Promise<void> {
  const {ports} = readSupervisor(layout)!;
  const branch = `/projects/${target.projectId}/branches/${target.branchId}`;
  const {databases} = (await callApi(layout, ports, 'GET', `${branch}/databases`)) as {
    databases: {name: string; owner_name: string}[];
  };
  for (const {name, owner_name: role} of databases)
    printLine(`  ${name}: ${await localConnectionUri(layout, ports, {...target, database: name, role})}`);
  printLine('roles have the passwords that they had; one without a SCRAM password gets one from the API:');
  printLine(`  neon api -X POST ${branch}/roles/ROLE/reset_password`);
}

/** Refuses what would be refused later, before anything is made. Answers what role 10 is called. */
function checkDirectory(directory: string): string {
  const at = (name: string): string => joinPath(directory, name);
  if (!systemDisk.exists(at('PG_VERSION')) || !systemDisk.exists(at('global/pg_control')))
    throw new UsageError(`${directory} is no data directory: it has no PG_VERSION or no global/pg_control`);
  const major = systemDisk.readFile(at('PG_VERSION')).toString('utf8').trim();
  if (major !== '15')
    throw new UsageError(
      `${directory} is of PostgreSQL ${major}, and 15 is what runs here: dump it with \`pg_dump -Fc\`, and import the dump`,
    );
  if (systemDisk.exists(at('postmaster.pid')))
    throw new UsageError(
      `a server runs on ${directory}, or was killed there: stop it with \`pg_ctl stop -m fast\` first`,
    );
  for (const signal of ['standby.signal', 'recovery.signal', 'backup_label'])
    if (systemDisk.exists(at(signal)))
      throw new UsageError(
        `${directory} holds ${signal}: it is a standby or a backup. Start it, let it finish recovery (pg_ctl promote), and stop it`,
      );
  try {
    const {state} = parseControlFile(systemDisk.readFile(at('global/pg_control')));
    if (state !== databaseState.shutDown)
      throw new UsageError(
        `${directory} was not shut down cleanly: start it, and stop it with \`pg_ctl stop -m fast\``,
      );
    const tablespaces = systemDisk.exists(at('pg_tblspc')) ? systemDisk.list(at('pg_tblspc')) : [];
    if (tablespaces.length > 0)
      throw new UsageError(
        `${directory} has tablespaces of its own (${tablespaces.join(', ')}): move what is in them to pg_default (alter table … set tablespace), drop them, stop it and import again`,
      );
    return readBootstrapSuperuser(systemDisk, directory);
  } catch (error) {
    throw error instanceof UsageError ? error : new UsageError(`${directory}: ${(error as Error).message}`);
  }
}
