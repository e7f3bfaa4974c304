/**
 * The index of a timeline: the one object that says what the timeline consists of. docs/formats/index.md.
 *
 *   tenants/<tenant>/timelines/<timeline>/index-<generation 8 hex>-<sequence 8 hex>
 *   tenants/<tenant>/timelines/<timeline>/<layer name>
 *
 * An index object is written once, like everything; the newest is the one with the highest (generation, sequence) whose
 * generation is not above the reader's own. Its first line is `pagoda-index <version> <crc 8 hex> <bytes>`, then JSON. The
 * CRC-32C covers object id and JSON, so that a swapped or damaged index is not read.
 */
import {crc32c} from '#runtime/crc.ts';
import {type Lsn, formatLsn, lsn, lsnToHex, parseLsn} from '#postgres/lsn.ts';

export const indexFormatVersion = 2;

/** `delta`: what changed in [startLsn, endLsn). `image`: whole values as of startLsn. */
export type LayerKind = 'delta' | 'image';

export interface LayerDescription {
  /** Unique: `<kind>-<startLsn>-<endLsn>-<token>-<generation>`. */
  readonly name: string;
  readonly kind: LayerKind;
  /** Of the pageserver attachment that wrote the object. */
  readonly generation: number;
  /** First key, and last key (inclusive): 36 hex digits each. */
  readonly firstKey: string;
  readonly lastKey: string;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  /**
   * Nothing of keys in [firstKey, lastKey] at LSNs below startLsn is needed beside this layer: a key that is not in it did
   * not exist. Only image layers made from a whole key range have it.
   */
  readonly complete: boolean;
  readonly size: number;
  /** CRC-32C of the whole object. */
  readonly checksum: number;
  /** Where its root block starts: a cold read begins with [rootOffset, size). */
  readonly rootOffset: number;
  readonly versions: number;
  /** Different keys; not there in layers of earlier programs. */
  readonly keys?: number;
  /** 0: as ingest (or an import) wrote it. A merge of layers of level n gives a run of level n + 1; a made image has 1. */
  readonly level: number;
  /**
   * Layers of one level and run were made together: they do not overlap in keys. Later history has the higher run; a merge
   * keeps that of its newest input.
   */
  readonly run: number;
  /** Older layers too may hold versions at startLsn: a record was so long that it was split. */
  readonly continues: boolean;
  /** A merge is under way: keys below `from` (36 hex digits) are in layers of the next level already, of run `run`. */
  readonly moving?: {readonly from: string; readonly run: number};
  /** The timeline whose object it is, when it is not this one. */
  readonly timelineId?: string;
}

export type TimelineLifecycle = 'creating' | 'importing' | 'active' | 'deleting';

export interface SafekeeperNode {
  readonly nodeId: number;
  readonly host: string;
  readonly port: number;
}

/** How much history is kept readable: whatever lies in either of the two windows, counted back from the end. */
export interface Retention {
  readonly windowSeconds: number;
  /** Bytes of WAL. */
  readonly windowBytes: number;
}

export const defaultRetention: Retention = {windowSeconds: 7 * 86_400, windowBytes: 0};

export interface TimelineIndex {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly generation: number;
  readonly sequence: number;
  readonly lifecycle: TimelineLifecycle;
  readonly pgVersion: number;
  /** System identifier of the cluster, decimal; '0' until an import has told it. */
  readonly systemId: string;
  readonly ancestorTimelineId?: string;
  readonly ancestorLsn?: Lsn;
  /** The timeline it branched from at initialLsn, when it was detached from it since. */
  readonly detachedFrom?: string;
  /** Everything up to here is in the layers listed (and in the ancestor): ingest goes on from here after a restart. */
  readonly diskConsistentLsn: Lsn;
  /** Where the timeline's own history begins: the import's LSN or the branch point. */
  readonly initialLsn: Lsn;
  readonly logicalSizeBytes: number;
  /** Where the WAL beyond diskConsistentLsn is. A hint: the broker knows better when the timeline is active. */
  readonly safekeepers: readonly SafekeeperNode[];
  readonly retention: Retention;
  /** History below this LSN may be gone. Never falls. */
  readonly gcCutoffLsn: Lsn;
  /** LSNs under a lease: whoever attaches the tenant keeps them until their holders have had time to ask again. */
  readonly leases: readonly Lsn[];
  /** Milliseconds since 1970. There while the timeline is archived: whoever attaches the tenant does not load it. */
  readonly archivedAtMs?: number;
  /** In no order. */
  readonly layers: readonly LayerDescription[];
}

/** An index object that is damaged or of an unknown version; the message names the object. */
export class IndexCorruption extends Error {}

export function tenantPrefix(tenantId: string): string {
  return `tenants/${tenantId}/`;
}
export function timelinePrefix(tenantId: string, timelineId: string): string {
  return `tenants/${tenantId}/timelines/${timelineId}/`;
}

/** What block checksums of a layer are bound to. */
export function layerObjectId(tenantId: string, timelineId: string, name: string): string {
  return `${tenantId}/${timelineId}/${name}`;
}

export function layerName(kind: LayerKind, startLsn: Lsn, endLsn: Lsn, token: number, generation: number): string {
  return `${kind}-${lsnToHex(startLsn)}-${lsnToHex(endLsn)}-${hex8(token)}-${hex8(generation)}`;
}

/** Generation in the name of a layer object, or undefined when the key is none. */
export function layerGeneration(key: string): number | undefined {
  const match = /\/(?:delta|image)-[0-9A-F]{16}-[0-9A-F]{16}-[0-9a-f]{8}-([0-9a-f]{8})$/.exec(key);
  return match ? parseInt(match[1]!, 16) : undefined;
}

export function indexObjectKey(tenantId: string, timelineId: string, generation: number, sequence: number): string {
  return `${timelinePrefix(tenantId, timelineId)}index-${hex8(generation)}-${hex8(sequence)}`;
}

/** (generation, sequence) of an index object's key, or undefined when the key is none. */
export function parseIndexObjectKey(key: string): {generation: number; sequence: number} | undefined {
  const match = /\/index-([0-9a-f]{8})-([0-9a-f]{8})$/.exec(key);
  return match ? {generation: parseInt(match[1]!, 16), sequence: parseInt(match[2]!, 16)} : undefined;
}

/** The one to load: of the index objects among a timeline's keys that with the highest (generation, sequence). */
export function newestIndex(keys: readonly string[]): {generation: number; sequence: number} | undefined {
  const positions = keys.map(parseIndexObjectKey).filter((at) => at !== undefined);
  return positions.sort((x, y) => x.generation - y.generation || x.sequence - y.sequence).at(-1);
}

function hex8(value: number): string {
  return value.toString(16).padStart(8, '0');
}

export function encodeIndex(index: TimelineIndex): Buffer {
  const json = {
    tenantId: index.tenantId,
    timelineId: index.timelineId,
    generation: index.generation,
    sequence: index.sequence,
    lifecycle: index.lifecycle,
    pgVersion: index.pgVersion,
    systemId: index.systemId,
    ...(index.ancestorTimelineId === undefined
      ? {}
      : {ancestorTimelineId: index.ancestorTimelineId, ancestorLsn: formatLsn(index.ancestorLsn ?? lsn(0))}),
    ...(index.detachedFrom === undefined ? {} : {detachedFrom: index.detachedFrom}),
    diskConsistentLsn: formatLsn(index.diskConsistentLsn),
    initialLsn: formatLsn(index.initialLsn),
    logicalSizeBytes: index.logicalSizeBytes,
    safekeepers: index.safekeepers,
    retention: index.retention,
    gcCutoffLsn: formatLsn(index.gcCutoffLsn),
    leases: index.leases.map(formatLsn),
    ...(index.archivedAtMs === undefined ? {} : {archivedAtMs: index.archivedAtMs}),
    layers: index.layers.map((layer) => ({
      ...layer,
      startLsn: formatLsn(layer.startLsn),
      endLsn: formatLsn(layer.endLsn),
    })),
  };
  const body = Buffer.from(JSON.stringify(json), 'utf8');
  const head = `pagoda-index ${indexFormatVersion} ${hex8(bodyChecksum(index, body))} ${body.length}\n`;
  return Buffer.concat([Buffer.from(head, 'latin1'), body]);
}

function bodyChecksum(
  at: {tenantId: string; timelineId: string; generation: number; sequence: number},
  body: Buffer,
): number {
  const id = indexObjectKey(at.tenantId, at.timelineId, at.generation, at.sequence);
  return crc32c(body, crc32c(Buffer.from(id, 'utf8')));
}

/** The index in `bytes`, read from the object that `at` names. Throws IndexCorruption. */
export function decodeIndex(
  bytes: Buffer,
  at: {tenantId: string; timelineId: string; generation: number; sequence: number},
): TimelineIndex {
  const object = indexObjectKey(at.tenantId, at.timelineId, at.generation, at.sequence);
  const fail = (reason: string): never => {
    throw new IndexCorruption(`index ${object} is damaged: ${reason}; restore the object from another copy`);
  };
  const lineEnd = bytes.indexOf(10);
  const head = /^pagoda-index (\d{1,4}) ([0-9a-f]{8}) (\d{1,10})$/.exec(
    bytes.toString('latin1', 0, Math.max(lineEnd, 0)),
  );
  if (!head) return fail('its first line is not that of an index');
  const version = Number(head[1]);
  if (version !== indexFormatVersion && version !== indexFormatVersion - 1)
    return fail(`format version ${version}, this program reads ${indexFormatVersion - 1} and ${indexFormatVersion}`);
  const body = bytes.subarray(lineEnd + 1);
  if (body.length !== Number(head[3])) return fail(`${body.length} bytes, it says ${head[3]}`);
  if (hex8(bodyChecksum(at, body)) !== head[2]) return fail('its checksum is wrong');
  try {
    return parseBody(JSON.parse(body.toString('utf8')), at, version);
  } catch (error) {
    return fail((error as Error).message);
  }
}

type Json = Readonly<Record<string, unknown>>;

function parseBody(
  json: Json,
  at: {tenantId: string; timelineId: string; generation: number; sequence: number},
  version: number,
): TimelineIndex {
  const text = (object: Json, name: string): string => {
    const value = object[name];
    if (typeof value !== 'string') throw new Error(`${name} is not a text`);
    return value;
  };
  const whole = (object: Json, name: string): number => {
    const value = object[name];
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0)
      throw new Error(`${name} is not a number`);
    return value;
  };
  const position = (object: Json, name: string): Lsn => parseLsn(text(object, name));
  for (const name of ['tenantId', 'timelineId', 'generation', 'sequence'] as const)
    if (json[name] !== at[name]) throw new Error(`${name} is that of another object`);
  const lifecycle = text(json, 'lifecycle');
  if (lifecycle !== 'creating' && lifecycle !== 'importing' && lifecycle !== 'active' && lifecycle !== 'deleting')
    throw new Error(`unknown lifecycle ${lifecycle}`);
  if (!Array.isArray(json['layers'])) throw new Error('layers is not a list');
  const layers = json['layers'].map((layer: Json, i): LayerDescription => {
    const kind = text(layer, 'kind');
    if (kind !== 'delta' && kind !== 'image') throw new Error(`unknown kind of layer ${kind}`);
    return {
      name: text(layer, 'name'),
      kind,
      generation: whole(layer, 'generation'),
      firstKey: text(layer, 'firstKey'),
      lastKey: text(layer, 'lastKey'),
      startLsn: position(layer, 'startLsn'),
      endLsn: position(layer, 'endLsn'),
      complete: layer['complete'] === true,
      size: whole(layer, 'size'),
      checksum: whole(layer, 'checksum'),
      rootOffset: whole(layer, 'rootOffset'),
      versions: whole(layer, 'versions'),
      ...(layer['keys'] === undefined ? {} : {keys: whole(layer, 'keys')}),
      // Version 1 had no merges: layers in the order in which they were frozen, of which any may share its first LSN.
      level: version === 1 ? 0 : whole(layer, 'level'),
      run: version === 1 ? i + 1 : whole(layer, 'run'),
      continues: version === 1 || layer['continues'] === true,
      ...(layer['moving'] === undefined ? {} : {moving: parseMoving(layer['moving'] as Json)}),
      ...(layer['timelineId'] === undefined ? {} : {timelineId: text(layer, 'timelineId')}),
    };
  });
  return {
    ...at,
    lifecycle,
    pgVersion: whole(json, 'pgVersion'),
    systemId: text(json, 'systemId'),
    ...(json['ancestorTimelineId'] === undefined
      ? {}
      : {ancestorTimelineId: text(json, 'ancestorTimelineId'), ancestorLsn: position(json, 'ancestorLsn')}),
    ...(json['detachedFrom'] === undefined ? {} : {detachedFrom: text(json, 'detachedFrom')}),
    diskConsistentLsn: position(json, 'diskConsistentLsn'),
    initialLsn: position(json, 'initialLsn'),
    logicalSizeBytes: whole(json, 'logicalSizeBytes'),
    safekeepers: parseSafekeepers(json['safekeepers']),
    retention: version === 1 ? defaultRetention : parseRetention(json['retention']),
    gcCutoffLsn: version === 1 ? lsn(0) : position(json, 'gcCutoffLsn'),
    leases: version === 1 ? [] : parseLeases(json['leases']),
    ...(json['archivedAtMs'] === undefined ? {} : {archivedAtMs: whole(json, 'archivedAtMs')}),
    layers,
  };
}

function parseMoving({from, run}: Json): {from: string; run: number} {
  if (typeof from !== 'string' || !/^[0-9a-f]{36}$/.test(from) || !Number.isSafeInteger(run))
    throw new Error('moving is {from, run}');
  return {from, run: run as number};
}

function parseLeases(value: unknown): Lsn[] {
  if (!Array.isArray(value)) throw new Error('leases is not a list');
  return value.map((text) => parseLsn(String(text)));
}

/** Or an Error that says what is wrong with it. */
export function parseRetention(value: unknown): Retention {
  const {windowSeconds, windowBytes = 0} = (value ?? {}) as Json;
  if (
    !Number.isSafeInteger(windowSeconds) ||
    !Number.isSafeInteger(windowBytes) ||
    (windowSeconds as number) < 0 ||
    (windowBytes as number) < 0
  )
    throw new Error('retention is {windowSeconds, windowBytes}, whole numbers not below zero');
  return {windowSeconds: windowSeconds as number, windowBytes: windowBytes as number};
}

/** The list, or an Error that says what is wrong with it. */
export function parseSafekeepers(value: unknown): SafekeeperNode[] {
  if (!Array.isArray(value) || value.length > 100) throw new Error('safekeepers is not a list');
  return value.map((node: Json) => {
    const {nodeId, host, port} = node ?? {};
    if (!Number.isSafeInteger(nodeId) || !Number.isSafeInteger(port) || typeof host !== 'string' || host.length > 255)
      throw new Error('a safekeeper is {nodeId, host, port}');
    return {nodeId: nodeId as number, host, port: port as number};
  });
}
