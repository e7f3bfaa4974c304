/**
 * What every test of something that keeps objects runs on: a folder, and Ceph RGW behind a proxy that makes faults.
 *
 *   onStores('…', async (store) => { … });            an ObjectStore is all it needs
 *   onTestStores('…', async ({config, url}) => { … }); it starts services, or whole installations
 */
import assert from 'node:assert/strict';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {type TestContext, after, test} from 'node:test';
import {FolderObjectStore} from '#objectstore/folder-object-store.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import type {ObjectStoreConfig} from '#objectstore/open.ts';
import {RetryingObjectStore} from '#objectstore/retrying-object-store.ts';
import {S3ObjectStore} from '#objectstore/s3-object-store.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {systemRandom} from '#runtime/random.ts';
import {FaultProxy, faults} from './fault-proxy.ts';
import {Rgw} from './rgw.ts';

const storeKinds = ['folder', 's3 behind faults'] as const;
export type StoreKind = (typeof storeKinds)[number];

/** One for all tests of the file. */
let gateway: Promise<Rgw> | undefined;
after(async () => (await gateway?.catch(() => undefined))?.stop());

/** One request in so many goes wrong. */
const faultOneIn = 6;

/**
 * A test on each kind, at the same time: most of them wait most of the time. All of one file's own are in its hands: what `work` is
 * given is empty.
 */
export function onStores(name: string, work: (store: ObjectStore) => Promise<void>): void {
  onKinds(name, ({store}) => work(store));
}

/** The same for what starts services of its own on the store: all that there is to know of it, and a look whether it had faults. */
export function onTestStores(name: string, work: (store: TestStore, t: TestContext) => Promise<void>): void {
  onKinds(name, async (store, t) => {
    await work(store, t);
    assert.equal(store.faults > 0, store.kind !== 'folder', `${store.faults} faults of the store's`);
  });
}

function onKinds(name: string, work: (store: TestStore, t: TestContext) => Promise<void>): void {
  test(name, {timeout: 900_000, concurrency: true}, async (t) => {
    await Promise.all(
      storeKinds.map((kind) =>
        t.test(kind, async (t) => {
          await using store = await TestStore.open(kind);
          await work(store, t);
        }),
      ),
    );
  });
}

export class TestStore {
  readonly kind: StoreKind;
  /** For services. */
  readonly config: ObjectStoreConfig;
  /** For the test itself: faults are tried again. */
  readonly store: ObjectStore;
  /** For `PAGODA_OBJECT_STORE`; undefined: Pagoda's own folder. */
  readonly url: string | undefined;
  readonly #dir: string | undefined;
  readonly #proxy: FaultProxy | undefined;

  private constructor(kind: StoreKind, config: ObjectStoreConfig, dir?: string, proxy?: FaultProxy) {
    this.kind = kind;
    this.config = config;
    this.#dir = dir;
    this.#proxy = proxy;
    if (config.kind === 'folder') {
      const {root} = config;
      this.store = inFolder(root);
      return;
    }
    this.url = `s3://${config.bucket}/${config.prefix}?endpoint=${config.endpoint}&credentials=${config.credentialsFile}`;
    this.store = new RetryingObjectStore(new S3ObjectStore(config, systemClock), {
      clock: systemClock,
      random: systemRandom,
      triesMax: 12,
      firstDelayMs: 2,
    });
  }

  static async open(kind: StoreKind): Promise<TestStore> {
    if (kind === 'folder') {
      const root = mkdtempSync(join(tmpdir(), 'pagoda-objects-'));
      return new TestStore(kind, {kind, root}, root);
    }
    const rgw = await (gateway ??= Rgw.start());
    const proxy = await FaultProxy.start(rgw.endpoint);
    proxy.slowMs = 50;
    // `hang` costs a whole try; it has tests of its own.
    const kinds = faults.filter((fault) => fault !== 'hang');
    const config = {...(await rgw.bucket(proxy.endpoint)), prefix: 'pg/'};
    proxy.random(21, faultOneIn, kinds);
    return new TestStore(kind, config, undefined, proxy);
  }

  /** Faults that were made; 0 for a folder. */
  get faults(): number {
    return [...(this.#proxy?.done.values() ?? [])].reduce((sum, n) => sum + n, 0);
  }

  /** What the installation in `dir` has put here, which was started with `url`. */
  ofInstallation(dir: string): ObjectStore {
    return this.kind === 'folder' ? inFolder(join(dir, 'objects')) : this.store;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#proxy?.stop();
    if (this.#dir !== undefined) rmSync(this.#dir, {recursive: true, force: true, maxRetries: 10, retryDelay: 100});
  }
}

function inFolder(root: string): ObjectStore {
  return new FolderObjectStore({root, disk: systemDisk, random: systemRandom, nowMs: Date.now()});
}
