/** The project that a new installation starts with, and the banner that tells how to use it. */
import {systemClock} from '#runtime/clock.ts';
import type {Disk} from '#runtime/disk.ts';
import {requestJson} from '#runtime/http.ts';
import {readSecretFile} from '#runtime/secret-file.ts';
import type {Layout, Ports} from '#cli/layout.ts';

export interface FirstProject {
  readonly projectId: string;
  readonly connectionUri: string;
}

/** After a kill, operations of then may still be finishing: the API says 423. */
const busyMsMax = 60_000;

/** Calls API v2 as the first user. Throws with the API's own message. */
export async function callApi(
  layout: Layout,
  ports: Ports,
  method: string,
  path: string,
  body?: unknown,
): Promise<Record<string, unknown>> {
  const deadline = systemClock.monotonicMs() + busyMsMax;
  for (;;) {
    const {status, json} = await callOnce(layout, ports, method, path, body);
    const answer = (json ?? {}) as Record<string, unknown>;
    if (status < 300) return answer;
    if (status !== 423 || systemClock.monotonicMs() > deadline)
      throw new Error(`${method} ${path}: ${String(answer['message'] ?? `status ${status}`)}`);
    await systemClock.sleep(200);
  }
}

function callOnce(
  layout: Layout,
  ports: Ports,
  method: string,
  path: string,
  body: unknown,
): Promise<{status: number; json: unknown}> {
  return requestJson({
    method,
    url: `http://127.0.0.1:${ports.api}/api/v2${path}`,
    token: readSecretFile(layout.apiKeyFile).trim(),
    ...(body === undefined ? {} : {body}),
    timeoutMs: 180_000,
  });
}

/** A new installation gets a project; later ones are the user's affair, also when the last one was deleted. */
export async function makeFirstProject(
  layout: Layout,
  ports: Ports,
  disk: Disk,
  report: (line: string) => void,
): Promise<void> {
  const marker = layout.node('first-project-made');
  if (disk.exists(marker)) return;
  if ((await listProjects(layout, ports)).length === 0) {
    report('making the first project');
    await callApi(layout, ports, 'POST', '/projects', {project: {name: 'first'}});
  }
  disk.writeFileAtomic(marker, Buffer.alloc(0));
}

export interface Target {
  readonly projectId: string;
  readonly branchId: string;
  readonly endpointId: string;
}

/** The oldest project, its default branch, and that one's endpoint; undefined when there is no such thing. */
async function findTarget(layout: Layout, ports: Ports): Promise<Target | undefined> {
  const [project] = (await listProjects(layout, ports)).toSorted((a, b) => (a.created_at < b.created_at ? -1 : 1));
  if (project === undefined) return undefined;
  const {branches} = (await callApi(layout, ports, 'GET', `/projects/${project.id}/branches`)) as {
    branches: {id: string; default: boolean}[];
  };
  const branchId = branches.find((b) => b.default)?.id;
  const {endpoints} = (await callApi(layout, ports, 'GET', `/projects/${project.id}/endpoints`)) as {
    endpoints: {id: string; branch_id: string}[];
  };
  const endpointId = endpoints.find((e) => e.branch_id === branchId)?.id;
  return branchId === undefined || endpointId === undefined ? undefined : {projectId: project.id, branchId, endpointId};
}

async function listProjects(layout: Layout, ports: Ports): Promise<{id: string; created_at: string}[]> {
  const answer = await callApi(layout, ports, 'GET', '/projects?limit=400');
  return answer['projects'] as {id: string; created_at: string}[];
}

/** How to connect to the oldest project. */
export async function findProject(layout: Layout, ports: Ports): Promise<FirstProject | undefined> {
  const target = await findTarget(layout, ports);
  if (target === undefined) return undefined;
  const branch = `/projects/${target.projectId}/branches/${target.branchId}`;
  const {databases} = (await callApi(layout, ports, 'GET', `${branch}/databases`)) as {
    databases: {name: string; owner_name: string}[];
  };
  const [database] = databases;
  if (database === undefined) return undefined;
  const {name, owner_name: role} = database;
  return {
    projectId: target.projectId,
    connectionUri: await localConnectionUri(layout, ports, {...target, database: name, role}),
  };
}

/** Its endpoint runs afterwards; if it does not, that is reported: the next connection tries again. */
export async function startProject(layout: Layout, ports: Ports, report: (line: string) => void): Promise<void> {
  const target = await findTarget(layout, ports);
  if (target === undefined) return;
  try {
    await callApi(layout, ports, 'POST', `/projects/${target.projectId}/endpoints/${target.endpointId}/start`);
  } catch (error) {
    report(`the endpoint ${target.endpointId} does not start: ${(error as Error).message}`);
  }
}

/** A string that works on this machine without name resolution of `*.localhost`. */
export async function localConnectionUri(
  layout: Layout,
  ports: Ports,
  target: Target & {readonly database: string; readonly role: string},
): Promise<string> {
  const query = `database_name=${encodeURIComponent(target.database)}&role_name=${encodeURIComponent(target.role)}&branch_id=${target.branchId}&endpoint_id=${target.endpointId}`;
  const {uri} = (await callApi(layout, ports, 'GET', `/projects/${target.projectId}/connection_uri?${query}`)) as {
    uri: string;
  };
  const url = new URL(uri);
  // With the proxy the host is `<endpoint>.localhost`, which not every machine resolves: name the endpoint in the options.
  if (url.hostname.startsWith(`${target.endpointId}.`)) {
    url.hostname = url.hostname.slice(target.endpointId.length + 1);
    const user = url.username + (url.password === '' ? '' : `:${url.password}`);
    return `postgresql://${user}@${url.host}${url.pathname}?options=endpoint%3D${target.endpointId}`;
  }
  return uri;
}

export function banner(layout: Layout, ports: Ports, project: FirstProject | undefined): string {
  const key = readSecretFile(layout.apiKeyFile).trim();
  return [
    '',
    '  Pagoda is up.',
    '',
    ...(project === undefined
      ? ['  There is no endpoint yet; make one with the neon CLI.']
      : ['  Connect:', '', `    psql '${project.connectionUri}'`]),
    '',
    '  Neon CLI and API (neon projects list, neon branches create, …):',
    '',
    `    export NEON_API_HOST=http://127.0.0.1:${ports.api}/api/v2`,
    `    export NEON_API_KEY=${key}`,
    '',
    `  Data  ${layout.data}`,
    `  Logs  ${layout.logs}  (pagoda logs [role])`,
    '  Stop  Ctrl-C, or pagoda stop',
    '',
  ].join('\n');
}
