import type {ObjectStoreConfig} from '#objectstore/open.ts';
import type {LimitChanges} from './timeline/state.ts';

export interface PageserverConfig {
  /** Unique in the cell. */
  readonly nodeId: number;
  /** Page service. 0 = any free port. */
  readonly host: string;
  readonly port: number;
  /** Management HTTP. 0 = any free port. */
  readonly httpPort: number;
  /** Nothing precious: it may be deleted whenever the process is down. */
  readonly dataDir: string;
  readonly keysDir: string;
  readonly objectStore: ObjectStoreConfig;
  /** Tells which safekeeper has the newest WAL. Without one, only the lists given over HTTP are used. */
  readonly broker?: {readonly host: string; readonly port: number};
  /**
   * Base URL of the control plane's internal API: asked at start which tenants to attach, and for validation of generations.
   * Without one, every tenant in the object store is attached with the generation it was last written with: only right when
   * there can be no other pageserver.
   */
  readonly controlUrl?: string;
  /** Memory for blocks of layer files (default 256 MiB). */
  readonly blockCacheBytes?: number;
  /**
   * Local disk for parts of layer objects (default: 10 GiB for S3; 0, none, for a folder, which is local disk itself:
   * docs/decisions/0008-object-stores.md).
   */
  readonly localCacheBytes?: number;
  /** Memory for layers that are not uploaded yet, of all branches together (default 512 MiB). */
  readonly memoryLayerBytes?: number;
  readonly limits?: LimitChanges;
}
