import type {ObjectStoreConfig} from '#objectstore/open.ts';
import type {ArchiveTimes} from '#safekeeper/timeline-archive.ts';

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
  /** Where WAL is archived; the same for all safekeepers and pageservers of a cell. Without one all WAL stays on the disk. */
  readonly objectStore?: ObjectStoreConfig;
  /** When what is archived and what leaves the disk; defaults in archiver.ts. For tests and small disks. */
  readonly archive?: ArchiveTimes;
  /** A timeline that nobody has used for so long leaves memory (default 60 s). */
  readonly unloadAfterMs?: number;
}
