/** What the control plane asks a compute's agent over HTTP. The agent itself has no routes in it. */
import {HttpError, type Route} from '#runtime/http.ts';
import type {ComputeSpec, SchemaSource} from '#wire/compute-spec.ts';

const bodyBytesMax = 4 * 1024 * 1024;

export interface AgentApi {
  status(): Record<string, unknown>;
  /** Roles and databases as Postgres has them. */
  catalog(): Promise<unknown>;
  /** Prometheus text. */
  metricsText(): string;
  /** Roles and databases changed while the compute runs; answers the state. HttpError 409 when it does not, 422 when Postgres refuses. */
  configure(change: Partial<ComputeSpec>): Promise<string>;
  /** Throws what PostgreSQL's tools said. */
  copySchema(source: SchemaSource): Promise<void>;
  /** Answers the state when it has stopped. HttpError 409 when somebody has used Postgres after that time (ms since 1970). */
  stopUnlessUsed(idleSinceMs: number | undefined): Promise<string>;
}

export function agentRoutes(agent: AgentApi): Route[] {
  return [
    {method: 'GET', path: '/status', handler: async () => ({status: 200, json: agent.status()})},
    {method: 'GET', path: '/catalog', handler: async () => ({status: 200, json: await agent.catalog()})},
    {
      method: 'GET',
      path: '/metrics',
      handler: async () => ({
        status: 200,
        body: Buffer.from(agent.metricsText()),
        headers: {'content-type': 'text/plain; version=0.0.4'},
      }),
    },
    {
      method: 'POST',
      path: '/configure',
      handler: async (request) => {
        const change = (await request.json(bodyBytesMax)) as Partial<ComputeSpec>;
        return {status: 200, json: {state: await agent.configure(change)}};
      },
    },
    {
      method: 'POST',
      path: '/copy_schema',
      handler: async (request) => {
        const source = (await request.json(bodyBytesMax)) as SchemaSource;
        await agent.copySchema(source).catch((error: unknown) => {
          throw new HttpError(422, 'not_copied', (error as Error).message);
        });
        return {status: 200, json: {}};
      },
    },
    {
      method: 'POST',
      path: '/stop',
      handler: async (request) => {
        const {idleSinceMs} = ((await request.json()) ?? {}) as {idleSinceMs?: unknown};
        const state = await agent.stopUnlessUsed(typeof idleSinceMs === 'number' ? idleSinceMs : undefined);
        return {status: 200, json: {state}};
      },
    },
  ];
}
