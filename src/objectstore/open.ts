/** The object store of a configuration, with everything a service wants around it. */
import type {Clock} from '#runtime/clock.ts';
import type {LargeFileDisk} from '#runtime/disk.ts';
import type {Log} from '#runtime/log.ts';
import type {Metrics} from '#runtime/metrics.ts';
import type {Random} from '#runtime/random.ts';
import {FolderObjectStore} from './folder-object-store.ts';
import {ClaimedObjectStore} from './installation.ts';
import {MeteredObjectStore} from './metered-object-store.ts';
import type {ObjectStore} from './object-store.ts';
import {RetryingObjectStore} from './retrying-object-store.ts';
import {S3ObjectStore, type S3StoreConfig} from './s3-object-store.ts';

export type ObjectStoreConfig = ({readonly kind: 'folder'; readonly root: string} | S3StoreConfig) & {
  /** Who the store belongs to (installation.ts); absent: not looked at. */
  readonly installationId?: string;
};

export interface ObjectStoreDeps {
  readonly clock: Clock;
  readonly random: Random;
  readonly disk: LargeFileDisk;
  readonly log: Log;
  /** Requests, bytes and times by operation go there. */
  readonly metrics?: Metrics;
}

/** Retries, counts, and is claimed before the first use. Does no I/O on the network yet. */
export function openObjectStore(config: ObjectStoreConfig, deps: ObjectStoreDeps): ObjectStore {
  return wrapObjectStore(openBareStore(config, deps), config, deps);
}

/** What openObjectStore puts around a store; tests give another one in. */
export function wrapObjectStore(
  bare: ObjectStore,
  config: ObjectStoreConfig | undefined,
  deps: ObjectStoreDeps,
): ObjectStore {
  const {clock, random, log, metrics} = deps;
  const metered = metrics === undefined ? bare : new MeteredObjectStore(bare, clock, metrics);
  const retrying = new RetryingObjectStore(metered, {
    clock,
    random,
    onRetry: (operation, error) => log.warn('object store: trying again', {operation, error: error.message}),
  });
  return config?.installationId === undefined
    ? retrying
    : new ClaimedObjectStore(retrying, config.installationId, describeStore(config));
}

function openBareStore(config: ObjectStoreConfig, {clock, random, disk}: ObjectStoreDeps): ObjectStore {
  switch (config.kind) {
    case 'folder':
      return new FolderObjectStore({root: config.root, disk, random, nowMs: clock.nowMs()});
    case 's3':
      return new S3ObjectStore(config, clock);
    default:
      throw new Error(`object store of kind ${String((config as {kind: unknown}).kind)}: there are 'folder' and 's3'`);
  }
}

/** For messages. */
export function describeStore(config: ObjectStoreConfig): string {
  return config.kind === 'folder'
    ? `folder ${config.root}`
    : `bucket ${config.bucket}${config.prefix ? ` (prefix ${config.prefix})` : ''}${config.endpoint === undefined ? '' : ` at ${config.endpoint}`}`;
}
