/**
 * Looks at every object of a tenant in the object store itself, past all caches: is each that an index names there, whole and
 * unchanged; what is there that no index names. With a copy of the store, what is damaged or missing is put back.
 */
import type {ObjectStore} from '#objectstore/object-store.ts';
import {ObjectStoreError} from '#objectstore/object-store.ts';
import {BlockCache} from '../layers/block-cache.ts';
import {LayerCorruption} from '../layers/layer-format.ts';
import {LayerReader} from '../layers/layer-reader.ts';
import {parseArchivedMarkKey} from '../timeline/archived.ts';
import {parseHotBlocksKey} from '../secondary/hot-blocks.ts';
import {
  IndexCorruption,
  type LayerDescription,
  type TimelineIndex,
  decodeIndex,
  layerObjectId,
  parseIndexObjectKey,
  tenantPrefix,
  timelinePrefix,
} from '../timeline/index-object.ts';

export type ScrubFinding = {
  /** dangling: an index names it, it is not there. damaged: its bytes are not what was written. orphan: no index names it. */
  readonly kind: 'dangling' | 'damaged' | 'orphan';
  readonly object: string;
  readonly reason: string;
  readonly repaired: boolean;
};

export interface ScrubReport {
  readonly tenantId: string;
  readonly indexes: number;
  readonly layers: number;
  readonly bytes: number;
  readonly findings: readonly ScrubFinding[];
}

export interface ScrubOptions {
  readonly store: ObjectStore;
  readonly tenantId: string;
  /** Another store with the same names (a replica, a backup of the bucket). */
  readonly copy?: ObjectStore;
  /** An object of this length as far as the local cache has it, the rest from the store: a last copy. */
  readonly cached?: (object: string, bytes: number) => Promise<Buffer>;
  /** Nobody here holds the tenant: whoever does may be writing what no index names yet. */
  readonly elsewhere?: boolean;
  /** Lets others of the process have their turn, between objects. */
  readonly pause?: () => Promise<void>;
  /** Objects that are being written now or that a process knows otherwise; never orphans. Asked after the list. */
  readonly known?: () => Iterable<string>;
}

/** An index that was listed is gone: a later one took its place meanwhile. */
class Moved extends Error {}
const movedTriesMax = 10;

export async function scrubTenant(options: ScrubOptions): Promise<ScrubReport> {
  for (let tries = 1; ; tries++) {
    try {
      return await scrubOnce(options);
    } catch (error) {
      if (!(error instanceof Moved) || tries === movedTriesMax) throw error;
    }
  }
}

async function scrubOnce(options: ScrubOptions): Promise<ScrubReport> {
  const {store, tenantId, copy, cached} = options;
  const findings: ScrubFinding[] = [];
  const listed = await store.list(tenantPrefix(tenantId));
  const names = new Set(listed.map(({key}) => key));
  const named = new Set<string>(options.known?.() ?? []);
  const newest = new Map<string, {index: TimelineIndex; object: string}>();
  const newestPosition = new Map<string, {generation: number; sequence: number}>();
  let indexes = 0;
  let layers = 0;
  let bytes = 0;
  const indexObjects = [...names].filter((key) => parseIndexObjectKey(key) !== undefined);
  for (const object of indexObjects) {
    const at = parseIndexObjectKey(object)!;
    const timelineId = object.slice(`${tenantPrefix(tenantId)}timelines/`.length).split('/')[0]!;
    indexes++;
    const best = newestPosition.get(timelineId);
    const isNewest =
      best === undefined ||
      at.generation > best.generation ||
      (at.generation === best.generation && at.sequence > best.sequence);
    if (isNewest) newestPosition.set(timelineId, at);
    const check = (content: Buffer): TimelineIndex => decodeIndex(content, {tenantId, timelineId, ...at});
    const index = await checked(store, copy, object, check, findings);
    if (index !== undefined && isNewest) newest.set(timelineId, {index, object});
  }
  const seen = new Set<string>();
  for (const [timelineId, {index, object: indexObject}] of newest) {
    named.add(indexObject);
    for (const layer of index.layers) {
      const owner = layer.timelineId ?? timelineId;
      const object = timelinePrefix(tenantId, owner) + layer.name;
      named.add(object);
      if (seen.has(object)) continue;
      seen.add(object);
      layers++;
      bytes += layer.size;
      await options.pause?.();
      await checkLayer({store, copy, cached, tenantId, owner}, layer, object, findings);
    }
  }
  for (const key of names)
    if (!named.has(key) && ![parseIndexObjectKey, parseHotBlocksKey, parseArchivedMarkKey].some((parse) => parse(key)))
      findings.push({
        kind: 'orphan',
        object: key,
        reason:
          options.elsewhere === true
            ? 'no index names it; the tenant is not attached here, so it may be about to be named'
            : 'no index names it; the pageserver removes such objects within the hour',
        repaired: false,
      });
  return {tenantId, indexes, layers, bytes, findings};
}

interface LayerPlace {
  readonly store: ObjectStore;
  readonly copy: ObjectStore | undefined;
  readonly cached: ScrubOptions['cached'];
  readonly tenantId: string;
  readonly owner: string;
}

async function checkLayer(
  {store, copy, cached, tenantId, owner}: LayerPlace,
  description: LayerDescription,
  object: string,
  findings: ScrubFinding[],
): Promise<void> {
  const verify = async (get: () => Promise<Buffer>): Promise<Buffer> => {
    const bytes = await get();
    const reader = new LayerReader({
      description,
      store,
      objectKey: object,
      objectId: layerObjectId(tenantId, owner, description.name),
      cache: new BlockCache(0),
    });
    await reader.verify(bytes);
    return bytes;
  };
  try {
    await verify(() => store.get(object));
  } catch (error) {
    const kind = kindOf(error);
    if (kind === undefined) throw error;
    if (!(await isNamed(store, tenantId, owner, object))) return; // merged or collected since its index was read
    let repaired = false;
    const others = [copy && (() => copy.get(object)), cached && (() => cached(object, description.size))];
    for (const other of others) {
      if (other === undefined || repaired) continue;
      let whole: Buffer | undefined;
      await works(async () => void (whole = await verify(other)));
      if (whole === undefined) continue;
      await replace(store, object, whole);
      repaired = await works(async () => void (await verify(() => store.get(object))));
    }
    findings.push({kind, object, reason: (error as Error).message, repaired});
  }
}

async function checked<T>(
  store: ObjectStore,
  copy: ObjectStore | undefined,
  object: string,
  check: (content: Buffer) => T,
  findings: ScrubFinding[],
): Promise<T | undefined> {
  try {
    return check(await store.get(object));
  } catch (error) {
    const kind = kindOf(error);
    if (kind === undefined) throw error;
    if (kind === 'dangling') throw new Moved(object);
    let value: T | undefined;
    if (copy !== undefined)
      await works(async () => {
        const content = await copy.get(object);
        value = check(content);
        await replace(store, object, content);
      });
    findings.push({kind, object, reason: (error as Error).message, repaired: value !== undefined});
    return value;
  }
}

/** Whether any timeline of the tenant that may use the owner's layers names the object now. */
async function isNamed(store: ObjectStore, tenantId: string, owner: string, object: string): Promise<boolean> {
  for (let tries = 1; ; tries++)
    try {
      return await isNamedOnce(store, tenantId, owner, object);
    } catch (error) {
      // An index that cannot be read tells nothing: rather a finding too many. One that is gone has a successor.
      const kind = kindOf(error);
      if (kind === undefined) throw error;
      if (kind === 'damaged' || tries === movedTriesMax) return true;
    }
}

/** Throws what makes an index unreadable. */
async function isNamedOnce(store: ObjectStore, tenantId: string, owner: string, object: string): Promise<boolean> {
  const newest = new Map<string, {key: string; generation: number; sequence: number}>();
  for (const {key} of await store.list(`${tenantPrefix(tenantId)}timelines/`)) {
    const at = parseIndexObjectKey(key);
    if (at === undefined) continue;
    const timelineId = key.slice(`${tenantPrefix(tenantId)}timelines/`.length).split('/')[0]!;
    const best = newest.get(timelineId);
    if (
      best === undefined ||
      at.generation > best.generation ||
      (at.generation === best.generation && at.sequence > best.sequence)
    )
      newest.set(timelineId, {key, ...at});
  }
  for (const [timelineId, {key, generation, sequence}] of newest) {
    const index = decodeIndex(await store.get(key), {tenantId, timelineId, generation, sequence});
    if (index.layers.some((layer) => (layer.timelineId ?? timelineId) === owner && object.endsWith(`/${layer.name}`)))
      return true;
  }
  return false;
}

/** Objects are written once, so what takes the place of a damaged one is put where nothing is. */
async function replace(store: ObjectStore, object: string, content: Buffer): Promise<void> {
  await store.delete([object]);
  await store.put(object, content, {ifNoneMatch: '*'});
}

function kindOf(error: unknown): 'dangling' | 'damaged' | undefined {
  if (error instanceof ObjectStoreError && error.code === 'not-found') return 'dangling';
  if (error instanceof LayerCorruption || error instanceof IndexCorruption) return 'damaged';
  return undefined;
}

async function works(attempt: () => Promise<void>): Promise<boolean> {
  try {
    await attempt();
    return true;
  } catch (error) {
    if (kindOf(error) === undefined && !(error instanceof ObjectStoreError)) throw error;
    return false;
  }
}
