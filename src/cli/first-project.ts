/** The project that a new installation starts with, and the banner that tells how to use it. */
import type {Disk} from '#runtime/disk.ts';
import {requestJson} from '#runtime/http.ts';
import {readSecretFile} from '#runtime/secret-file.ts';
import type {Layout, Ports} from '#cli/layout.ts';

export interface FirstProject {
  readonly projectId: string;
  readonly connectionUri: string;
}

/** Calls API v2 as the first user. Throws with the API's own message. */
export async function callApi(
  layout: Layout,
  ports: Ports,
  method: string,
  path: string,
  body?: unknown,
): Promise<Record<string, unknown>> {
  const {status, json} = await requestJson({
    method,
    url: `http://127.0.0.1:${ports.api}/api/v2${path}`,
    token: readSecretFile(layout.apiKeyFile).trim(),
    ...(body === undefined ? {} : {body}),
    timeoutMs: 180_000,
  });
  const answer = (json ?? {}) as Record<string, unknown>;
  if (status >= 300) throw new Error(`${method} ${path}: ${String(answer['message'] ?? `status ${status}`)}`);
  return answer;
}

/** Makes it when there is no project at all; otherwise finds the oldest. Its default endpoint runs afterwards. */
export async function ensureFirstProject(
  layout: Layout,
  ports: Ports,
  disk: Disk,
  report: (line: string) => void,
): Promise<FirstProject | undefined> {
  if (!disk.exists(layout.apiKeyFile)) return undefined;
  const {projects} = (await callApi(layout, ports, 'GET', '/projects?limit=400')) as {
    projects: {id: string; created_at: string}[];
  };
  let projectId = projects.toSorted((a, b) => (a.created_at < b.created_at ? -1 : 1))[0]?.id;
  if (projectId === undefined) {
    report('making the first project');
    const created = (await callApi(layout, ports, 'POST', '/projects', {project: {name: 'first'}})) as {
      project: {id: string};
    };
    projectId = created.project.id;
  }
  const {branches} = (await callApi(layout, ports, 'GET', `/projects/${projectId}/branches`)) as {
    branches: {id: string; default: boolean}[];
  };
  const branchId = branches.find((b) => b.default)?.id ?? branches[0]?.id;
  const {endpoints} = (await callApi(layout, ports, 'GET', `/projects/${projectId}/endpoints`)) as {
    endpoints: {id: string; branch_id: string}[];
  };
  const endpoint = endpoints.find((e) => e.branch_id === branchId) ?? endpoints[0];
  if (branchId === undefined || endpoint === undefined) return undefined;
  await callApi(layout, ports, 'POST', `/projects/${projectId}/endpoints/${endpoint.id}/start`);
  const {roles} = (await callApi(layout, ports, 'GET', `/projects/${projectId}/branches/${branchId}/roles`)) as {
    roles: {name: string}[];
  };
  const {databases} = (await callApi(
    layout,
    ports,
    'GET',
    `/projects/${projectId}/branches/${branchId}/databases`,
  )) as {
    databases: {name: string; owner_name: string}[];
  };
  const database = databases[0];
  const role = database?.owner_name ?? roles[0]?.name;
  if (database === undefined || role === undefined) return undefined;
  return {
    projectId,
    connectionUri: await localConnectionUri(layout, ports, {
      projectId,
      branchId,
      endpointId: endpoint.id,
      database: database.name,
      role,
    }),
  };
}

/** A string that works on this machine without name resolution of `*.localhost`. */
async function localConnectionUri(
  layout: Layout,
  ports: Ports,
  target: {projectId: string; branchId: string; endpointId: string; database: string; role: string},
): Promise<string> {
  const query = `database_name=${encodeURIComponent(target.database)}&role_name=${encodeURIComponent(target.role)}&branch_id=${target.branchId}&endpoint_id=${target.endpointId}`;
  const {uri} = (await callApi(layout, ports, 'GET', `/projects/${target.projectId}/connection_uri?${query}`)) as {
    uri: string;
  };
  const url = new URL(uri);
  // With the proxy the host is `<endpoint>.localhost`, which not every machine resolves: name the endpoint in the options.
  if (url.hostname.startsWith(`${target.endpointId}.`)) {
    url.hostname = url.hostname.slice(target.endpointId.length + 1);
    return `postgresql://${url.username}:${url.password}@${url.host}${url.pathname}?options=endpoint%3D${target.endpointId}`;
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
