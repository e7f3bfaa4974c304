/**
 * How the control plane runs computes. The local kind (local-launcher.ts) starts processes on this machine; a fleet would
 * place them with an orchestrator behind the same interface.
 */

export interface RoleSpec {
  readonly name: string;
  /** `SCRAM-SHA-256$…`; absent: no password login. */
  readonly scramVerifier?: string;
  readonly canLogin: boolean;
}

export interface DatabaseSpec {
  readonly name: string;
  readonly owner: string;
}

/** What one compute runs. The same shape as the agent's ComputeSpec (src/compute/spec.ts); the cli checks that they agree. */
export interface ComputeSpec {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly projectId: string;
  readonly branchId: string;
  readonly endpointId: string;
  readonly mode: 'primary';
  /** The major version, 15. */
  readonly pgVersion: number;
  readonly systemId: string;
  readonly pageserver: {readonly host: string; readonly port: number; readonly httpPort: number};
  readonly safekeepers: readonly {readonly nodeId: number; readonly host: string; readonly port: number}[];
  readonly token: string;
  readonly tokenRefreshUrl?: string;
  readonly roles: readonly RoleSpec[];
  readonly databases: readonly DatabaseSpec[];
  readonly droppedRoles?: readonly string[];
  readonly droppedDatabases?: readonly string[];
  readonly alreadyApplied?: boolean;
  readonly settings: Readonly<Record<string, string>>;
}

/** A compute that accepts connections. */
export interface RunningCompute {
  readonly host: string;
  readonly port: number;
}

/** Every call is idempotent: it may be repeated after a crash of the caller, with the same effect. */
export interface ComputeLauncher {
  /** Starts the compute, or finds the one that runs already. Rejects when Postgres does not come up. */
  start(spec: ComputeSpec): Promise<RunningCompute>;
  /** The compute that runs, if one does. */
  find(endpointId: string): Promise<RunningCompute | undefined>;
  /** Applies roles, databases and settings to the running compute. */
  configure(spec: ComputeSpec): Promise<void>;
  /** Graceful; resolves when nothing of the compute runs any more. */
  stop(endpointId: string): Promise<void>;
  /** Called when a compute ended without `stop`. */
  onExit: (endpointId: string) => void;
  /** Lets go of what it watches; running computes go on. */
  close(): void;
}
