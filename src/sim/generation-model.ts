/**
 * A bounded, complete, breadth-first search of generations and deletion: pageservers that hold one timeline one after the
 * other, or both at once when one of them has not noticed, on the production classes and functions (UploadQueue, the choice of
 * the index to load, the judgement of orphans).
 *
 * npm run model-check   prints states, depth and `complete, 0 violations` for each model
 *
 * What a pageserver sends to the object store or to the control plane stays under way for as long as it likes, also for ever, also
 * when its sender is long gone: a paused pageserver, a late request and a crash are all that. An upload of an index may fail and
 * take effect nevertheless, then or later. An attachment lists and reads in two steps.
 *
 * What must hold in every state:
 *  1. All layers of the index that the next attachment would load are in the object store (no index names a missing object).
 *  2. So are those that the newest attachment reads from.
 *  3. That index reaches to every LSN that was published: WAL below it may be trimmed.
 *  4. Its layers hold all WAL up to where it says it reaches, none missing.
 */
import {lsn, type Lsn} from '#postgres/lsn.ts';
import {
  type LayerDescription,
  indexObjectKey,
  layerName,
  newestIndex,
  parseIndexObjectKey,
  timelinePrefix,
} from '#pageserver/timeline/index-object.ts';
import {orphansAmong} from '#pageserver/timeline/orphans.ts';
import {type UploadInput, type UploadOutput, UploadQueue} from '#pageserver/timeline/upload-queue.ts';
import {assert, unreachable} from '#runtime/assert.ts';
import {tenantId, timelineId} from '#sim/stage.ts';

export interface GenerationModel {
  readonly name: string;
  readonly pageservers: number;
  /** Generations that the control plane gives out, the first one (at pageserver 1) included. */
  readonly generations: number;
  /** Layers that are made of WAL, by one attachment at most: how far history goes. */
  readonly layers: number;
  /** Merges of two layers, all together. */
  readonly merges: number;
  /** Sweeps of orphans, all together. */
  readonly sweeps: number;
  /** Uploads of an index whose answer is an error. */
  readonly failures: number;
}

/** Seeded bugs: the search must find each of them. */
export type GenerationMutation =
  /** A pageserver takes its own generation for the newest without asking. */
  | 'no-validation'
  /** Objects go when they are replaced, not when the index without them is validated. */
  | 'delete-at-once'
  /** Two attachments get the same generation. */
  | 'generation-twice'
  /** An attachment loads the index with the highest sequence, whatever its generation. */
  | 'newest-by-sequence'
  /** What the next index does without is an orphan before that index is durable. */
  | 'replaced-are-orphans'
  /** A layer is an orphan while it waits for an older one to be uploaded, without which the index cannot name it. */
  | 'pending-are-orphans'
  /** An attachment judges orphans before it has saved an index of its own generation. */
  | 'no-index-of-its-own';

export interface GenerationModelResult {
  readonly states: number;
  readonly depth: number;
  readonly complete: boolean;
  readonly violation: string | undefined;
  readonly path: readonly string[];
}

const nothing = {pageservers: 2, generations: 2, layers: 1, merges: 0, sweeps: 0, failures: 0};

export const generationModels: readonly GenerationModel[] = [
  {
    ...nothing,
    name: 'generations: 2 pageservers, 3 generations, 1 layer, 1 failed upload',
    generations: 3,
    failures: 1,
  },
  {...nothing, name: 'deletion: 2 pageservers, 2 generations, 2 layers, 1 merge', layers: 2, merges: 1},
  {...nothing, name: 'orphans: 2 pageservers, 2 generations, 1 layer, 1 sweep', sweeps: 1},
  {
    ...nothing,
    name: 'orphans of one: 1 pageserver, 1 generation, 2 layers, 1 merge, 1 sweep',
    pageservers: 1,
    generations: 1,
    layers: 2,
    merges: 1,
    sweeps: 1,
  },
];

/** WAL of one layer. */
const unit = 0x10;
const firstLsn = lsn(0x100);
const firstKey = '0'.repeat(36);
const lastKey = 'f'.repeat(36);

type Effect =
  | {readonly kind: 'put-layer'; readonly by: number; readonly id: number; readonly layer: LayerDescription}
  | {
      readonly kind: 'put-merge';
      readonly by: number;
      readonly layer: LayerDescription;
      readonly of: readonly LayerDescription[];
    }
  | {
      readonly kind: 'put-index';
      readonly by: number;
      readonly key: string;
      readonly index: StoredIndex;
      readonly sequence: number;
      /** Its sender was told that it failed. */
      readonly late?: true;
    }
  | {readonly kind: 'validate'; readonly by: number; readonly generation: number; readonly sequence: number}
  | {readonly kind: 'answer'; readonly by: number; readonly sequence: number; readonly valid: boolean}
  | {readonly kind: 'delete'; readonly by: number; readonly keys: readonly string[]}
  | {
      readonly kind: 'sweep';
      readonly by: number;
      readonly generation: number;
      readonly keys: readonly string[];
    };

interface StoredIndex {
  readonly consistentLsn: Lsn;
  readonly layers: readonly LayerDescription[];
}

/** What the queue of an attachment was made of: enough to make it again. */
interface Attached {
  readonly generation: number;
  readonly loaded: {generation: number; sequence: number; layers: readonly LayerDescription[]; consistentLsn: Lsn};
  readonly inputs: readonly UploadInput[];
  /** Of what was frozen last. */
  readonly frozenLsn: Lsn;
  readonly frozen: number;
  readonly merging: boolean;
}

/** An attachment is a number; those of one pageserver follow one another, and only its last one acts. */
interface Attachment {
  readonly pageserver: number;
  readonly generation: number;
  /** The index that was in the list, not read yet. */
  readonly listed: {readonly generation: number; readonly sequence: number} | undefined;
  readonly attached: Attached | undefined;
}

interface State {
  /** Keys of layers, and indexes by key. */
  readonly layers: readonly string[];
  readonly indexes: Readonly<Record<string, StoredIndex>>;
  /** By number. */
  readonly attachments: readonly Attachment[];
  readonly effects: readonly Effect[];
  readonly publishedLsn: Lsn;
  readonly merges: number;
  readonly sweeps: number;
  readonly failures: number;
}

const prefix = timelinePrefix(tenantId, timelineId);
const indexKey = (generation: number, sequence: number): string =>
  indexObjectKey(tenantId, timelineId, generation, sequence);

export class GenerationModelCheck {
  readonly #model: GenerationModel;
  readonly #mutation: GenerationMutation | undefined;
  readonly #statesMax: number;
  readonly #seen = new Set<string>();
  readonly #parents: number[] = [];
  readonly #labels: string[] = [];

  constructor(model: GenerationModel, options: {mutation?: GenerationMutation; statesMax?: number} = {}) {
    this.#model = model;
    this.#mutation = options.mutation;
    this.#statesMax = options.statesMax ?? Infinity;
  }

  run(): GenerationModelResult {
    let frontier: {readonly state: State; readonly id: number}[] = [];
    let depth = 0;
    const visit = (state: State, parent: number, label: string, into: {state: State; id: number}[]): void => {
      const key = this.#canonical(state);
      if (this.#seen.has(key)) return;
      this.#seen.add(key);
      const id = this.#parents.length;
      this.#parents.push(parent);
      this.#labels.push(label);
      into.push({state, id});
    };
    const result = (complete: boolean, violation?: string, path: readonly string[] = []): GenerationModelResult => ({
      states: this.#seen.size,
      depth,
      complete,
      violation,
      path,
    });
    visit(this.#initial(), -1, 'start', frontier);
    while (frontier.length > 0) {
      const next: {state: State; id: number}[] = [];
      for (const {state, id} of frontier) {
        const wrong = this.#violation(state);
        if (wrong !== undefined) return result(false, wrong, this.#path(id));
        let label = '';
        try {
          this.#expand(state, (how, successor) => {
            label = how;
            visit(successor(), id, how, next);
          });
        } catch (error) {
          return result(false, (error as Error).message, [...this.#path(id), label]);
        }
        if (this.#seen.size > this.#statesMax) return result(false);
      }
      frontier = next;
      if (next.length > 0) depth++;
    }
    return result(true);
  }

  #path(id: number): string[] {
    const path: string[] = [];
    for (let at = id; at >= 0; at = this.#parents[at]!) path.unshift(this.#labels[at]!);
    return path;
  }

  /** Generation 1 is attached at pageserver 1, of a timeline whose first index is there. */
  #initial(): State {
    const first: StoredIndex = {consistentLsn: firstLsn, layers: []};
    const loaded = {generation: 1, sequence: 1, layers: [], consistentLsn: firstLsn};
    return {
      layers: [],
      indexes: {[indexKey(1, 1)]: first},
      attachments: [
        {
          pageserver: 1,
          generation: 1,
          listed: undefined,
          attached: {generation: 1, loaded, inputs: [], frozenLsn: firstLsn, frozen: 0, merging: false},
        },
      ],
      effects: [],
      publishedLsn: firstLsn,
      merges: 0,
      sweeps: 0,
      failures: 0,
    };
  }

  #expand(state: State, take: (how: string, successor: () => State) => void): void {
    const {pageservers, generations, layers, merges, sweeps} = this.#model;
    if (state.attachments.length < generations)
      for (let pageserver = 1; pageserver <= pageservers; pageserver++)
        take(`control: generation ${state.attachments.length + 1} to pageserver ${pageserver}`, () => {
          const generation = this.#mutation === 'generation-twice' ? 1 : state.attachments.length + 1;
          const fresh: Attachment = {pageserver, generation, listed: undefined, attached: undefined};
          return {...state, attachments: [...state.attachments, fresh]};
        });
    for (const [by, attachment] of state.attachments.entries()) {
      if (!isLast(state, by)) continue; // a newer one runs in its place
      const {attached} = attachment;
      const who = `ps${attachment.pageserver} g${attachment.generation}`;
      if (attached === undefined) {
        this.#expandAttach(state, by, who, take);
        continue;
      }
      const queue = queueOf(attached);
      if (queue.isStale) continue;
      if (attached.frozen < layers && (attached.frozenLsn - firstLsn) / unit < layers)
        take(`${who} freezes a layer`, () => {
          const consistentLsn = (attached.frozenLsn + unit) as Lsn;
          const grown = {...attached, frozenLsn: consistentLsn, frozen: attached.frozen + 1};
          return this.#step(state, by, grown, {kind: 'layer-frozen', id: grown.frozen, consistentLsn});
        });
      if (queue.layers.length >= 2 && !attached.merging && state.merges < merges)
        take(`${who} merges two layers`, () => {
          const of = queue.layers.slice(0, 2);
          const layer = describe(of[0]!.startLsn, of[1]!.endLsn, attachment.generation, by, 9);
          const next = withAttached(state, by, {...attached, merging: true});
          return {...next, merges: state.merges + 1, effects: [...state.effects, {kind: 'put-merge', by, layer, of}]};
        });
      if (state.sweeps >= sweeps) continue;
      // Whoever comes next must not load an index of before: what that one names may be an orphan here.
      const isOwn = queue.safeIndex?.generation === attachment.generation;
      if (!isOwn && this.#mutation !== 'no-index-of-its-own') {
        if (queue.isIdle)
          take(`${who} saves an index of its own`, () => this.#step(state, by, attached, {kind: 'index-changed'}));
      } else
        take(`${who} lists orphans`, () => {
          const writing = state.effects.flatMap((effect) =>
            effect.by === by && (effect.kind === 'put-layer' || effect.kind === 'put-merge') ? [effect.layer.name] : [],
          );
          const listed = this.#mutation === 'pending-are-orphans' ? queue.layers : queue.uploaded;
          const known = new Set([...listed.map(({name}) => name), ...writing].map((name) => prefix + name));
          if (this.#mutation !== 'replaced-are-orphans') for (const key of queue.replaced) known.add(key);
          const keys = orphansAmong({
            keys: [...state.layers, ...Object.keys(state.indexes)],
            generation: attachment.generation,
            prefix: `tenants/${tenantId}/timelines/`,
            known,
            judged: new Set([timelineId]),
            indexes: new Map(queue.safeIndex === undefined ? [] : [[timelineId, queue.safeIndex]]),
          });
          const sweep: Effect = {kind: 'sweep', by, generation: attachment.generation, keys};
          return {
            ...state,
            sweeps: state.sweeps + 1,
            effects: keys.length === 0 ? state.effects : [...state.effects, sweep],
          };
        });
    }
    for (const [i, effect] of state.effects.entries()) this.#expandEffect(state, i, effect, take);
  }

  /** List, then read: what was listed may be gone. */
  #expandAttach(state: State, by: number, who: string, take: (how: string, successor: () => State) => void): void {
    const attachment = state.attachments[by]!;
    const {listed, generation} = attachment;
    if (listed === undefined) {
      const keys = Object.keys(state.indexes);
      const newest = this.#newest(keys);
      assert(newest !== undefined, 'a timeline has an index at all times');
      if (newest.generation > generation) return; // refused: this attachment is not the newest
      take(`${who} lists: index ${newest.generation}-${newest.sequence}`, () =>
        withAttachment(state, by, {...attachment, listed: newest}),
      );
      return;
    }
    const index = state.indexes[indexKey(listed.generation, listed.sequence)];
    if (index === undefined)
      take(`${who} finds its index gone`, () => withAttachment(state, by, {...attachment, listed: undefined}));
    else
      take(`${who} loads`, () => {
        const loaded = {...listed, layers: index.layers, consistentLsn: index.consistentLsn};
        const attached: Attached = {
          generation,
          loaded,
          inputs: [],
          frozenLsn: index.consistentLsn,
          frozen: 0,
          merging: false,
        };
        const next = withAttachment(state, by, {...attachment, listed: undefined, attached});
        return next;
      });
  }

  #expandEffect(state: State, i: number, effect: Effect, take: (how: string, successor: () => State) => void): void {
    const {by} = effect;
    const attachment = state.attachments[by]!;
    const who = `ps${attachment.pageserver} g${attachment.generation}`;
    const rest: State = {...state, effects: state.effects.filter((_, j) => j !== i)};
    const told = effect.kind === 'put-index' && effect.late === true;
    const alive = isLast(state, by) && !told ? attachment.attached : undefined;
    switch (effect.kind) {
      case 'put-layer':
      case 'put-merge':
        take(`${who}: layer ${effect.layer.name} is stored`, () => {
          const stored = {...rest, layers: [...rest.layers, prefix + effect.layer.name].sort()};
          if (alive === undefined) return stored;
          if (effect.kind === 'put-layer')
            return this.#step(stored, by, alive, {kind: 'layer-uploaded', id: effect.id, description: effect.layer});
          return this.#step(
            stored,
            by,
            {...alive, merging: false},
            {
              kind: 'layers-replaced',
              added: [effect.layer],
              removed: effect.of,
              narrowed: [],
              objects: effect.of.map(({name}) => prefix + name),
            },
          );
        });
        return;
      case 'put-index': {
        const {key, index, sequence} = effect;
        // Written once: a second one of that name is refused.
        const stored: State = key in rest.indexes ? rest : {...rest, indexes: {...rest.indexes, [key]: index}};
        take(`${who}: index ${sequence} is stored`, () => {
          if (alive === undefined) return stored;
          return this.#step(stored, by, alive, {
            kind: key in rest.indexes ? 'index-failed' : 'index-uploaded',
            sequence,
          });
        });
        if (alive === undefined || state.failures >= this.#model.failures) return;
        const failed = {failures: state.failures + 1};
        take(`${who}: index ${sequence} is stored, and its answer lost`, () =>
          this.#step({...stored, ...failed}, by, alive, {kind: 'index-failed', sequence}),
        );
        take(`${who}: index ${sequence} fails, and may be stored later`, () => {
          const late: Effect = {...effect, late: true};
          const next = this.#step({...rest, ...failed}, by, alive, {kind: 'index-failed', sequence});
          return {...next, effects: [...next.effects, late]};
        });
        return;
      }
      case 'validate':
        if (alive === undefined) return;
        take(`control: ${who} ${effect.sequence} is asked about`, () => {
          const valid = this.#mutation === 'no-validation' || effect.generation === newestGeneration(state);
          return {...rest, effects: [...rest.effects, {kind: 'answer', by, sequence: effect.sequence, valid}]};
        });
        return;
      case 'answer':
        if (alive === undefined) return;
        take(`${who} hears that ${effect.sequence} is ${effect.valid ? 'valid' : 'stale'}`, () =>
          this.#step(rest, by, alive, {kind: 'validated', sequence: effect.sequence, valid: effect.valid}),
        );
        return;
      case 'sweep':
        take(`control: ${who} is asked about, for its orphans`, () =>
          effect.generation === newestGeneration(state)
            ? {...rest, effects: [...rest.effects, {kind: 'delete', by, keys: effect.keys}]}
            : rest,
        );
        return;
      case 'delete':
        take(`${who}: ${effect.keys.join(', ').replaceAll(prefix, '')} deleted`, () => {
          const gone = new Set(effect.keys);
          return {
            ...rest,
            layers: rest.layers.filter((key) => !gone.has(key)),
            indexes: Object.fromEntries(Object.entries(rest.indexes).filter(([key]) => !gone.has(key))),
          };
        });
        return;
      default:
        unreachable(effect);
    }
  }

  #step(state: State, by: number, attached: Attached, input: UploadInput): State {
    const outputs = newQueue(attached).step(input);
    let next = withAttached(state, by, {...attached, inputs: [...attached.inputs, input]});
    if (this.#mutation === 'delete-at-once' && input.kind === 'layers-replaced')
      next = {...next, effects: [...next.effects, {kind: 'delete', by, keys: input.objects}]};
    for (const output of outputs) next = this.#emit(next, by, attached, output);
    return next;
  }

  #emit(state: State, by: number, attached: Attached, output: UploadOutput): State {
    const add = (effect: Effect): State => ({...state, effects: [...state.effects, effect]});
    switch (output.kind) {
      case 'upload-layer': {
        const endLsn = attached.frozenLsn;
        const layer = describe((endLsn - unit) as Lsn, endLsn, attached.generation, by, output.id);
        return add({kind: 'put-layer', by, id: output.id, layer});
      }
      case 'upload-index': {
        const {generation, sequence, consistentLsn, layers} = output;
        return add({
          kind: 'put-index',
          by,
          key: indexKey(generation, sequence),
          index: {consistentLsn, layers},
          sequence,
        });
      }
      case 'validate':
        return add({kind: 'validate', by, generation: output.generation, sequence: output.sequence});
      case 'publish':
        return output.remoteConsistentLsn > state.publishedLsn
          ? {...state, publishedLsn: output.remoteConsistentLsn}
          : state;
      case 'delete':
        return add({kind: 'delete', by, keys: output.objects});
      case 'stale':
        return state;
      default:
        return unreachable(output);
    }
  }

  #violation(state: State): string | undefined {
    const at = this.#newest(Object.keys(state.indexes));
    if (at === undefined) return 'no index is left';
    const index = state.indexes[indexKey(at.generation, at.sequence)]!;
    const stored = new Set(state.layers);
    const missing = (layers: readonly LayerDescription[]): string | undefined =>
      layers.find(({name}) => !stored.has(prefix + name))?.name;
    const dangling = missing(index.layers);
    if (dangling !== undefined) return `index ${at.generation}-${at.sequence} names ${dangling}, which is gone (1)`;
    const newest = state.attachments.at(-1)!;
    if (newest.attached !== undefined) {
      const unread = missing(queueOf(newest.attached).layers);
      if (unread !== undefined) return `the newest attachment reads ${unread}, which is gone (2)`;
    }
    if (index.consistentLsn < state.publishedLsn)
      return `published is ${state.publishedLsn}, index ${at.generation}-${at.sequence} ends at ${index.consistentLsn} (3)`;
    const covered = new Set<number>();
    for (const {startLsn, endLsn} of index.layers)
      for (let l = startLsn as number; l < endLsn; l += unit) covered.add(l);
    for (let l = firstLsn as number; l < index.consistentLsn; l += unit)
      if (!covered.has(l)) return `index ${at.generation}-${at.sequence} lacks the WAL at ${l} (4)`;
    return undefined;
  }

  /** What an attachment would load. */
  #newest(keys: readonly string[]): {generation: number; sequence: number} | undefined {
    if (this.#mutation !== 'newest-by-sequence') return newestIndex(keys);
    return keys
      .map((key) => parseIndexObjectKey(key)!)
      .sort((x, y) => x.sequence - y.sequence)
      .at(-1);
  }

  /** Two states of one text go on alike. */
  #canonical(state: State): string {
    const {attachments, effects, indexes, ...rest} = state;
    const parts: unknown[] = [
      rest,
      Object.entries(indexes).map(([key, {consistentLsn}]) => [key, consistentLsn]),
      attachments.map(({attached, ...attachment}, by) =>
        // Nothing that an earlier attachment of the same pageserver knew matters.
        attached === undefined || !isLast(state, by)
          ? attachment
          : [attachment, queueOf(attached).snapshot(), attached.frozen, attached.frozenLsn, attached.merging],
      ),
      effects.map((effect) => JSON.stringify(effect, shorten)).sort(),
    ];
    return JSON.stringify(parts, shorten);
  }
}

/** A layer is its name. */
function shorten(_key: string, value: unknown): unknown {
  return typeof value === 'object' && value !== null && 'rootOffset' in value
    ? (value as LayerDescription).name
    : value;
}

function isLast(state: State, by: number): boolean {
  const attachment = state.attachments[by];
  return (
    attachment !== undefined &&
    !state.attachments.some(({pageserver}, other) => other > by && pageserver === attachment.pageserver)
  );
}

function newestGeneration(state: State): number {
  return state.attachments.at(-1)!.generation;
}

function withAttachment(state: State, by: number, attachment: Attachment): State {
  return {...state, attachments: state.attachments.with(by, attachment)};
}

function withAttached(state: State, by: number, attached: Attached): State {
  return withAttachment(state, by, {...state.attachments[by]!, attached});
}

/** To look at; a step takes a new one. */
function queueOf(attached: Attached): UploadQueue {
  let queue = queues.get(attached);
  if (queue === undefined) {
    queue = newQueue(attached);
    queues.set(attached, queue);
  }
  return queue;
}
const queues = new WeakMap<Attached, UploadQueue>();

function newQueue(attached: Attached): UploadQueue {
  const queue = new UploadQueue(attached.loaded, attached.generation, indexKey);
  for (const input of attached.inputs) queue.step(input);
  return queue;
}

/** The token tells whose it is, as the random one of a real layer does. */
function describe(startLsn: Lsn, endLsn: Lsn, generation: number, by: number, id: number): LayerDescription {
  return {
    name: layerName('delta', startLsn, endLsn, by * 16 + id, generation),
    kind: 'delta',
    generation,
    firstKey,
    lastKey,
    startLsn,
    endLsn,
    complete: false,
    size: 0,
    checksum: 0,
    rootOffset: 0,
    versions: 0,
    level: 0,
    run: 1,
    continues: false,
  };
}
