/** `status`, `stop`, `logs`: commands that talk to a running installation or look at its files. */
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {connectSocket} from '#runtime/net.ts';
import {printLine, processExists, signalProcess} from '#runtime/process.ts';
import {processArguments} from '#runtime/process-table.ts';
import {readSecretFile} from '#runtime/secret-file.ts';
import {type Arguments, UsageError} from '#cli/arguments.ts';
import {callApi, findProject} from '#cli/first-project.ts';
import type {Layout} from '#cli/layout.ts';
import {tail} from '#cli/role-process.ts';
import {lockAddress, readSupervisor, type SupervisorFile} from '#cli/up.ts';

/** True while a supervisor holds the directory's lock. */
function isRunning(layout: Layout): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connectSocket({path: lockAddress(layout)});
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

async function requireRunning(layout: Layout): Promise<SupervisorFile> {
  const notes = readSupervisor(layout);
  if (!(await isRunning(layout)) || !notes)
    throw new UsageError(`nothing runs on ${layout.data}. Start it with \`npm start\` or \`pagoda up\``);
  return notes;
}

export async function stop(layout: Layout): Promise<void> {
  if (!(await isRunning(layout))) {
    printLine(`nothing runs on ${layout.data}`);
    return;
  }
  const notes = readSupervisor(layout);
  if (!notes || !processArguments(notes.pid)?.includes('up'))
    throw new Error(`the supervisor of ${layout.data} is just starting; try again`);
  signalProcess(notes.pid, 'SIGTERM');
  while (processExists(notes.pid)) await systemClock.sleep(50);
  printLine('stopped');
}

export async function status(args: Arguments, layout: Layout): Promise<void> {
  const format = args.options.get('-o') ?? args.options.get('--output') ?? 'text';
  if (!['text', 'json', 'env'].includes(format)) throw new UsageError('-o is json or env');
  const notes = await requireRunning(layout);
  const {ports} = notes;
  const apiUrl = `http://127.0.0.1:${ports.api}/api/v2`;
  const roles = roleStates(layout);
  if (format === 'text') {
    for (const role of roles)
      printLine(`${role.name.padEnd(14)} ${role.running ? `runs, pid ${role.pid}` : 'does not run'}`);
    const {projects} = (await callApi(layout, ports, 'GET', '/projects?limit=400')) as {
      projects: {id: string; name: string}[];
    };
    for (const project of projects) {
      const {endpoints} = (await callApi(layout, ports, 'GET', `/projects/${project.id}/endpoints`)) as {
        endpoints: {id: string; branch_id: string; current_state: string}[];
      };
      printLine(`project        ${project.id} (${project.name})`);
      for (const endpoint of endpoints)
        printLine(`  endpoint     ${endpoint.id} on ${endpoint.branch_id}: ${endpoint.current_state}`);
    }
    printLine(`API            ${apiUrl}`);
    return;
  }
  const project = await findProject(layout, ports);
  const apiKey = readSecretFile(layout.apiKeyFile).trim();
  if (format === 'json') {
    const value = {
      running: true,
      apiUrl,
      apiKey,
      databaseUrl: project?.connectionUri,
      projectId: project?.projectId,
      data: layout.data,
      logs: layout.logs,
      pid: notes.pid,
      ports,
      roles,
    };
    printLine(JSON.stringify(value, undefined, 2));
    return;
  }
  if (project) {
    printLine(`DATABASE_URL=${project.connectionUri}`);
    printLine(`DATABASE_URL_UNPOOLED=${project.connectionUri}`);
  }
  printLine(`NEON_API_HOST=${apiUrl}`);
  printLine(`NEON_API_KEY=${apiKey}`);
}

export function roleStates(layout: Layout): {name: string; pid: number; running: boolean}[] {
  const folder = layout.node('run');
  if (!systemDisk.exists(folder)) return [];
  return systemDisk.list(folder).map((file) => {
    const name = file.replace(/\.pid$/, '');
    const pid = Number(systemDisk.readFile(layout.pidFile(name)).toString('utf8'));
    return {name, pid, running: processArguments(pid)?.includes(layout.configFile(name)) ?? false};
  });
}

export function logs(args: Arguments, layout: Layout): void {
  const wanted = args.words[0];
  const names = systemDisk.exists(layout.logs)
    ? systemDisk
        .list(layout.logs)
        .filter((file) => file.endsWith('.log'))
        .map((file) => file.slice(0, -4))
    : [];
  if (names.length === 0) throw new UsageError(`there are no logs in ${layout.logs}`);
  if (wanted !== undefined && !names.includes(wanted))
    throw new UsageError(`there is no log of ${wanted}; there are: ${names.join(', ')}`);
  if (wanted !== undefined) {
    printLine(tail(systemDisk, layout.logFile(wanted), 200));
    return;
  }
  for (const name of names) {
    printLine(`==> ${layout.logFile(name)}`);
    printLine(tail(systemDisk, layout.logFile(name), 10));
    printLine('');
  }
}
