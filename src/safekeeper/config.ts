export interface SafekeeperConfig {
  /** Unique in the cell; never given to another disk. */
  readonly nodeId: number;
  readonly dataDir: string;
  /** Frame listener: proposers and readers of WAL. 0 = any free port. */
  readonly host: string;
  readonly port: number;
  /** Management HTTP. 0 = any free port. */
  readonly httpPort: number;
  /** Where others reach the frame listener, when it is not `host` and `port`. */
  readonly advertiseHost?: string;
  readonly advertisePort?: number;
  readonly keysDir: string;
  /** Without one nothing is published. */
  readonly broker?: {readonly host: string; readonly port: number};
}
