/** What handlers of API v2 work with: the store, operations, and the rules that all of them share. */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Random} from '#runtime/random.ts';
import {apiErrors} from '#control/api/errors.ts';
import type {Principal} from '#control/api/principal.ts';
import type {ControlConfig} from '#control/config.ts';
import type {Endpoints} from '#control/endpoints.ts';
import type {OperationDraft, OperationRunner} from '#control/operations/runner.ts';
import type {DumpSchema} from '#control/schema-dump.ts';
import type {PasswordVault} from '#control/scram.ts';
import type {StorageClients} from '#control/storage-client.ts';
import type {
  BranchTable,
  EndpointTable,
  OperationTable,
  ProjectTable,
  Store,
  StoreTransaction,
} from '#control/store/schema.ts';

/** As Neon's. */
const recoverySecondsDefault = 7 * 86_400;

/** A request waits this long for its operations; then it answers with what is still running. */
const operationWaitMsMax = 30_000;

export interface ApiOptions {
  readonly store: Store;
  readonly runner: OperationRunner;
  readonly endpoints: Endpoints;
  readonly storage: StorageClients;
  readonly vault: PasswordVault;
  readonly dumpSchema: DumpSchema;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly config: Pick<ControlConfig, 'regionId' | 'proxy' | 'shardsPerTenant' | 'recoverySeconds'>;
  readonly operationWaitMsMax?: number;
  readonly isDeadPageserver?: (nodeId: number) => boolean;
}

export class ApiContext {
  readonly store: Store;
  readonly runner: OperationRunner;
  readonly endpoints: Endpoints;
  readonly storage: StorageClients;
  readonly vault: PasswordVault;
  readonly dumpSchema: DumpSchema;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly config: Pick<ControlConfig, 'regionId' | 'proxy' | 'shardsPerTenant' | 'recoverySeconds'>;
  readonly #waitMsMax: number;
  readonly #isDeadPageserver: (nodeId: number) => boolean;

  constructor(options: ApiOptions) {
    this.store = options.store;
    this.runner = options.runner;
    this.endpoints = options.endpoints;
    this.storage = options.storage;
    this.vault = options.vault;
    this.dumpSchema = options.dumpSchema;
    this.clock = options.clock;
    this.random = options.random;
    this.log = options.log;
    this.config = options.config;
    this.#isDeadPageserver = options.isDeadPageserver ?? (() => false);
    this.#waitMsMax = options.operationWaitMsMax ?? operationWaitMsMax;
  }

  /** Nothing new is placed on them. */
  deadPageservers(): number[] {
    return this.storage.pageservers.map(({nodeId}) => nodeId).filter((id) => this.#isDeadPageserver(id));
  }

  /** How long what is deleted now can be recovered. */
  get recoveryMs(): number {
    return (this.config.recoverySeconds ?? recoverySecondsDefault) * 1000;
  }

  /** 404 for what does not exist and for what this key may not see: the two must look the same. */
  async project(principal: Principal, projectId: string): Promise<ProjectTable> {
    const project = await this.#projects(projectId).where('deleted_at', 'is', null).executeTakeFirst();
    if (!project || !mayUse(principal, project)) throw apiErrors.notFound('project', projectId);
    return project;
  }

  async branch(project: ProjectTable, branchId: string): Promise<BranchTable> {
    const branch = await this.#branches(project, branchId).where('deleted_at', 'is', null).executeTakeFirst();
    if (!branch) throw apiErrors.notFound('branch', branchId);
    return branch;
  }

  /** A deleted project whose time to be recovered is not over. */
  async recoverableProject(principal: Principal, projectId: string): Promise<ProjectTable> {
    const project = await this.#projects(projectId)
      .where('deleted_at', 'is not', null)
      .where('purge_at', '>', this.clock.nowMs())
      .executeTakeFirst();
    if (!project || !mayUse(principal, project)) throw apiErrors.notFound('deleted project', projectId);
    return project;
  }

  /** A deleted branch whose time to be recovered is not over; of a project that lives. */
  async recoverableBranch(project: ProjectTable, branchId: string): Promise<BranchTable> {
    const branch = await this.#branches(project, branchId)
      .where('deleted_at', 'is not', null)
      .where('purge_at', '>', this.clock.nowMs())
      .executeTakeFirst();
    if (!branch) throw apiErrors.notFound('deleted branch', branchId);
    return branch;
  }

  #projects(projectId: string) {
    return this.store.selectFrom('projects').selectAll().where('id', '=', projectId);
  }

  #branches(project: ProjectTable, branchId: string) {
    return this.store
      .selectFrom('branches')
      .selectAll()
      .where('project_id', '=', project.id)
      .where('id', '=', branchId)
      .where('hidden', '=', 0);
  }

  async defaultBranch(project: ProjectTable): Promise<BranchTable> {
    return this.store
      .selectFrom('branches')
      .selectAll()
      .where('project_id', '=', project.id)
      .where('is_default', '=', 1)
      .where('deleted_at', 'is', null)
      .executeTakeFirstOrThrow();
  }

  async endpoint(project: ProjectTable, endpointId: string): Promise<EndpointTable> {
    const endpoint = await this.store
      .selectFrom('endpoints')
      .selectAll()
      .where('project_id', '=', project.id)
      .where('id', '=', endpointId)
      .where('deleted_at', 'is', null)
      .executeTakeFirst();
    if (!endpoint) throw apiErrors.notFound('endpoint', endpointId);
    return endpoint;
  }

  /**
   * One change: refused with 423 while an unfinished operation holds one of `conflicts` (or the whole project); otherwise
   * `change` and its operations are committed together, carried out, and waited for.
   */
  async mutate<T>(
    projectId: string,
    conflicts: readonly string[],
    change: (
      trx: StoreTransaction,
      nowMs: number,
    ) => Promise<{readonly operations: readonly OperationDraft[]; readonly result: T}>,
  ): Promise<{result: T; operations: OperationTable[]}> {
    const {result, ids} = await this.store.transaction().execute(async (trx) => {
      const holder = await this.runner.holder(trx, projectId, [projectLock(projectId), ...conflicts]);
      if (holder) throw apiErrors.locked(holder.action);
      const changed = await change(trx, this.clock.nowMs());
      return {result: changed.result, ids: await this.runner.submit(trx, changed.operations)};
    });
    if (ids.length > 0) {
      await this.runner.kick();
      await this.runner.wait(ids, this.#waitMsMax);
    }
    return {result, operations: await this.operations(ids)};
  }

  async operations(ids: readonly string[]): Promise<OperationTable[]> {
    if (ids.length === 0) return [];
    return this.store.selectFrom('operations').selectAll().where('id', 'in', ids).orderBy('seq').execute();
  }
}

export function projectLock(projectId: string): string {
  return `project:${projectId}`;
}
export function branchLock(branchId: string): string {
  return `branch:${branchId}`;
}
export function endpointLock(endpointId: string): string {
  return `endpoint:${endpointId}`;
}

function mayUse(principal: Principal, project: ProjectTable): boolean {
  if (principal.projectId !== undefined) return principal.projectId === project.id;
  if (principal.organizationId !== undefined) return principal.organizationId === project.organization_id;
  return true;
}
