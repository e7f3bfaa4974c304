/**
 * How the control plane runs computes. The local kind (local-launcher.ts) starts processes on this machine; a fleet would
 * place them with an orchestrator behind the same interface.
 */

import type {ComputeSpec, ImportedCatalog, SchemaSource} from '#wire/compute-spec.ts';

/** A compute that accepts connections. */
export interface RunningCompute {
  readonly host: string;
  readonly port: number;
}

/** What a running compute says about itself. */
export interface ComputeReport {
  /** When it was last of use to somebody, ms since 1970 (compute/activity.ts). */
  readonly lastActiveMs: number;
  /** Of a replica: bytes of WAL and seconds that it is behind what storage has committed. */
  readonly replica?: {readonly replayLsn: string; readonly lagBytes: number; readonly lagSeconds: number};
}

/** Every call is idempotent: it may be repeated after a crash of the caller, with the same effect. */
export interface ComputeLauncher {
  /** Starts the compute, or finds the one that runs already. Rejects when Postgres does not come up. */
  start(spec: ComputeSpec): Promise<RunningCompute>;
  /** The compute that runs, if one does. */
  find(endpointId: string): Promise<RunningCompute | undefined>;
  /** Applies roles, databases and settings to the running compute. */
  configure(spec: ComputeSpec): Promise<void>;
  /**
   * Graceful; resolves when nothing of the compute runs any more. With `idleSinceMs` only if nobody has used the compute since
   * then; answers whether it has stopped (or did not run).
   */
  stop(endpointId: string, options?: {readonly idleSinceMs?: number}): Promise<boolean>;
  /** Endpoints of which something is kept on the machine: a directory, a port, a cache. */
  kept(): string[];
  /** Stops the compute and forgets what is kept of it: the endpoint is gone. */
  discard(endpointId: string): Promise<void>;
  /** What computes have said of which nothing else is kept goes when it is old. */
  removeOldLogs(): void;
  /** undefined: it does not run. Rejects when it does not answer. */
  report(endpointId: string): Promise<ComputeReport | undefined>;
  /** The roles and databases that a running compute has. */
  catalog(endpointId: string): Promise<ImportedCatalog>;
  /** Fills the databases of a running compute with the schema of another one's. Rejects with what pg_dump or pg_restore said. */
  copySchema(endpointId: string, source: SchemaSource): Promise<void>;
  /** Called when a compute ended without `stop`. */
  onExit: (endpointId: string) => void;
  /** Lets go of what it watches; running computes go on. */
  close(): void;
}
