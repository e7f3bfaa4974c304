/**
 * How the control plane runs computes. The local kind (local-launcher.ts) starts processes on this machine; a fleet would
 * place them with an orchestrator behind the same interface.
 */

import type {ComputeSpec} from '#wire/compute-spec.ts';

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
