/**
 * Elle's inference for list-append: every appended element is unique, so a read tells which transactions it follows, and the
 * longest read of a key tells the order of all appends to it. From that come the edges
 *
 *   ww  T1's append is directly before T2's      wr  T2 read T1's append as the newest      rw  T2 appended right after what T1 read
 *
 * and a cycle is an anomaly, named after Adya: G0 (only ww), G1c (ww and wr), G-single (one rw), G2 (several). Beside cycles:
 * G1a (a read of what was rolled back), G1b (a read of an unfinished transaction's state), lost and doubled appends, reads that
 * contradict each other or the transaction's own writes, and stale reads (a transaction that began after an append was
 * acknowledged does not see it).
 */

export type Operation =
  | {readonly kind: 'append'; readonly key: number; readonly value: number}
  | {readonly kind: 'read'; readonly key: number; readonly values: readonly number[]};

export interface Transaction {
  readonly id: number;
  /** `unknown`: the connection broke before the answer to COMMIT. */
  readonly outcome: 'committed' | 'aborted' | 'unknown';
  readonly operations: readonly Operation[];
  /** Monotonic milliseconds: before the first statement was sent, after the answer to COMMIT came. */
  readonly beganMs: number;
  readonly endedMs: number;
}

export type AnomalyKind =
  | 'G0'
  | 'G1a'
  | 'G1b'
  | 'G1c'
  | 'G-single'
  | 'G2'
  | 'lost-append'
  | 'doubled-append'
  | 'incompatible-order'
  | 'internal'
  | 'phantom-value'
  | 'stale-read';

export interface Anomaly {
  readonly kind: AnomalyKind;
  readonly text: string;
}

/** What each isolation level must not show. Snapshot isolation allows cycles with two or more rw edges (write skew). */
export const forbiddenAt: Readonly<Record<'serializable' | 'repeatable read', (kind: AnomalyKind) => boolean>> = {
  serializable: () => true,
  'repeatable read': (kind) => kind !== 'G2',
};

type Edge = 'ww' | 'wr' | 'rw';

/** `final`: every key's list, read when all was over. */
export function checkListAppend(
  transactions: readonly Transaction[],
  final: ReadonlyMap<number, readonly number[]>,
): Anomaly[] {
  const anomalies: Anomaly[] = [];
  const report = (kind: AnomalyKind, text: string): void => void anomalies.push({kind, text});
  const writers = new Map<number, {transaction: Transaction; isLastOfKey: boolean}>();
  for (const t of transactions) {
    const lastOf = new Map<number, number>();
    for (const op of t.operations) if (op.kind === 'append') lastOf.set(op.key, op.value);
    for (const op of t.operations)
      if (op.kind === 'append') writers.set(op.value, {transaction: t, isLastOfKey: lastOf.get(op.key) === op.value});
  }

  const orders = versionOrders(transactions, final, report);
  const positions = new Map<number, number>();
  for (const [key, order] of orders)
    order.forEach((value, i) => {
      if (positions.has(value)) report('doubled-append', `value ${value} is twice in key ${key}`);
      positions.set(value, i);
    });

  // An unknown transaction whose append was seen has committed.
  const committed = transactions.filter(
    (t) =>
      t.outcome === 'committed' ||
      (t.outcome === 'unknown' && t.operations.some((op) => op.kind === 'append' && positions.has(op.value))),
  );
  for (const t of committed) {
    checkInternal(t, report);
    for (const op of t.operations) {
      if (op.kind === 'append') {
        if (!positions.has(op.value))
          report('lost-append', `T${t.id} (${t.outcome}) appended ${op.value} to key ${op.key}; it is not there`);
        continue;
      }
      for (const value of op.values) {
        const writer = writers.get(value);
        if (writer === undefined)
          report('phantom-value', `T${t.id} read ${value} in key ${op.key}, which nobody appended`);
        else if (writer.transaction.outcome === 'aborted')
          report('G1a', `T${t.id} read ${value} in key ${op.key}, which T${writer.transaction.id} rolled back`);
      }
      const newest = op.values.at(-1);
      const writer = newest === undefined ? undefined : writers.get(newest);
      if (writer !== undefined && writer.transaction !== t && !writer.isLastOfKey)
        report('G1b', `T${t.id} read key ${op.key} in the middle of T${writer.transaction.id}`);
    }
  }
  checkStaleReads(committed, orders, writers, report);
  findCycles(committed, orders, positions, writers, report);
  return anomalies;
}

/** The order of appends to each key: the longest list read. Every other read must be its beginning. */
function versionOrders(
  transactions: readonly Transaction[],
  final: ReadonlyMap<number, readonly number[]>,
  report: (kind: AnomalyKind, text: string) => void,
): Map<number, readonly number[]> {
  const orders = new Map(final);
  const reads: {t: Transaction; key: number; values: readonly number[]}[] = [];
  for (const t of transactions) {
    if (t.outcome !== 'committed') continue;
    // Own appends make a read longer than anything others see until the commit; they are part of the order afterwards.
    for (const op of t.operations) if (op.kind === 'read') reads.push({t, key: op.key, values: op.values});
  }
  for (const {key, values} of reads) if (values.length > (orders.get(key)?.length ?? 0)) orders.set(key, values);
  for (const {t, key, values} of reads) {
    const order = orders.get(key) ?? [];
    if (values.some((value, i) => order[i] !== value))
      report(
        'incompatible-order',
        `T${t.id} read key ${key} as ${tail(values)}, which is no beginning of ${tail(order)}`,
      );
  }
  for (const [key, order] of orders) {
    const last = final.get(key) ?? [];
    if (last.length < order.length)
      report('incompatible-order', `key ${key} had ${order.length} elements once and has ${last.length} at the end`);
  }
  return orders;
}

/** A transaction sees its own appends, and nothing else change between two reads of one key. */
function checkInternal(t: Transaction, report: (kind: AnomalyKind, text: string) => void): void {
  const expected = new Map<number, readonly number[]>();
  const appended = new Map<number, number[]>();
  for (const op of t.operations) {
    const known = expected.get(op.key);
    if (op.kind === 'append') {
      if (known !== undefined) expected.set(op.key, [...known, op.value]);
      else appended.set(op.key, [...(appended.get(op.key) ?? []), op.value]);
      continue;
    }
    const own = appended.get(op.key) ?? [];
    const fits =
      known === undefined
        ? own.every((value, i) => op.values[op.values.length - own.length + i] === value)
        : known.length === op.values.length && known.every((value, i) => op.values[i] === value);
    if (!fits) report('internal', `T${t.id} read key ${op.key} as ${tail(op.values)}, against what it knew itself`);
    expected.set(op.key, op.values);
  }
}

function checkStaleReads(
  committed: readonly Transaction[],
  orders: ReadonlyMap<number, readonly number[]>,
  writers: ReadonlyMap<number, {transaction: Transaction}>,
  report: (kind: AnomalyKind, text: string) => void,
): void {
  // For each key and position: the earliest acknowledgement of that element or a later one.
  const acknowledgedFrom = new Map<number, Float64Array>();
  for (const [key, order] of orders) {
    const from = new Float64Array(order.length + 1).fill(Infinity);
    for (let i = order.length - 1; i >= 0; i--) {
      const t = writers.get(order[i]!)?.transaction;
      from[i] = Math.min(from[i + 1]!, t?.outcome === 'committed' ? t.endedMs : Infinity);
    }
    acknowledgedFrom.set(key, from);
  }
  for (const t of committed)
    for (const op of t.operations) {
      if (op.kind !== 'read') continue;
      const from = acknowledgedFrom.get(op.key)?.[op.values.length] ?? Infinity;
      if (from < t.beganMs)
        report(
          'stale-read',
          `T${t.id} read ${op.values.length} elements of key ${op.key}; the next was acknowledged ${(t.beganMs - from).toFixed(1)} ms before it began`,
        );
    }
}

function findCycles(
  committed: readonly Transaction[],
  orders: ReadonlyMap<number, readonly number[]>,
  positions: ReadonlyMap<number, number>,
  writers: ReadonlyMap<number, {transaction: Transaction}>,
  report: (kind: AnomalyKind, text: string) => void,
): void {
  const index = new Map(committed.map((t, i) => [t, i]));
  const edges: Map<number, Edge>[] = committed.map(() => new Map());
  const strength: Record<Edge, number> = {ww: 0, wr: 1, rw: 2};
  const link = (from: Transaction | undefined, to: Transaction | undefined, edge: Edge): void => {
    const a = from && index.get(from);
    const b = to && index.get(to);
    if (a === undefined || b === undefined || a === b) return;
    const known = edges[a]!.get(b);
    if (known === undefined || strength[edge] < strength[known]) edges[a]!.set(b, edge);
  };
  for (const order of orders.values())
    for (let i = 1; i < order.length; i++)
      link(writers.get(order[i - 1]!)?.transaction, writers.get(order[i]!)?.transaction, 'ww');
  for (const t of committed) {
    for (const op of t.operations) {
      if (op.kind !== 'read') continue;
      // What it saw of others: its own appends at the end are no news.
      const seen = op.values.filter((value) => writers.get(value)?.transaction !== t);
      const newest = seen.at(-1);
      if (newest !== undefined) link(writers.get(newest)?.transaction, t, 'wr');
      const order = orders.get(op.key) ?? [];
      for (let at = newest === undefined ? 0 : (positions.get(newest) ?? order.length) + 1; at < order.length; at++) {
        const next = writers.get(order[at]!)?.transaction;
        if (next === t) continue;
        link(t, next, 'rw');
        break;
      }
    }
  }
  for (const component of stronglyConnected(edges)) {
    const inside = new Set(component);
    const cycle =
      cycleWith(edges, inside, (e) => e === 'ww', undefined) ??
      cycleWith(edges, inside, (e) => e !== 'rw', undefined) ??
      cycleWith(edges, inside, (e) => e !== 'rw', 'rw') ??
      cycleWith(edges, inside, () => true, 'rw');
    if (cycle === undefined) continue;
    const kinds = cycle.map((from, i) => edges[from]!.get(cycle[(i + 1) % cycle.length]!)!);
    const rw = kinds.filter((k) => k === 'rw').length;
    const kind = rw > 1 ? 'G2' : rw === 1 ? 'G-single' : kinds.includes('wr') ? 'G1c' : 'G0';
    report(kind, cycle.map((i, n) => `T${committed[i]!.id} ─${kinds[n]}→ `).join('') + `T${committed[cycle[0]!]!.id}`);
  }
}

/** A shortest cycle that begins with an edge of kind `first` (any allowed one when undefined) and goes on over allowed edges. */
function cycleWith(
  edges: readonly Map<number, Edge>[],
  inside: ReadonlySet<number>,
  allowed: (edge: Edge) => boolean,
  first: Edge | undefined,
): number[] | undefined {
  let best: number[] | undefined;
  for (const start of inside) {
    for (const [second, edge] of edges[start]!) {
      if (!inside.has(second) || (first === undefined ? !allowed(edge) : edge !== first)) continue;
      const before = new Map<number, number>([[second, start]]);
      const queue = [second];
      for (let at = 0; at < queue.length && !before.has(start); at++)
        for (const [next, kind] of edges[queue[at]!]!) {
          if (!inside.has(next) || !allowed(kind) || before.has(next)) continue;
          before.set(next, queue[at]!);
          queue.push(next);
        }
      if (!before.has(start)) continue;
      const path: number[] = [];
      for (let at = before.get(start)!; at !== start; at = before.get(at)!) path.unshift(at);
      path.unshift(start);
      if (best === undefined || path.length < best.length) best = path;
    }
    if (best !== undefined && best.length === 2) break;
  }
  return best;
}

/** Tarjan, without recursion; components of more than one node. */
function stronglyConnected(edges: readonly Map<number, Edge>[]): number[][] {
  const n = edges.length;
  const order = new Int32Array(n).fill(-1);
  const low = new Int32Array(n);
  const onStack = new Uint8Array(n);
  const stack: number[] = [];
  const found: number[][] = [];
  let counter = 0;
  for (let root = 0; root < n; root++) {
    if (order[root] !== -1) continue;
    const work: {node: number; next: Iterator<number>}[] = [];
    const enter = (node: number): void => {
      order[node] = low[node] = counter++;
      stack.push(node);
      onStack[node] = 1;
      work.push({node, next: edges[node]!.keys()});
    };
    enter(root);
    while (work.length > 0) {
      const {node, next} = work.at(-1)!;
      const step = next.next();
      if (!step.done) {
        if (order[step.value] === -1) enter(step.value);
        else if (onStack[step.value]) low[node] = Math.min(low[node]!, order[step.value]!);
        continue;
      }
      work.pop();
      const parent = work.at(-1)?.node;
      if (parent !== undefined) low[parent] = Math.min(low[parent]!, low[node]!);
      if (low[node] !== order[node]) continue;
      const component: number[] = [];
      for (;;) {
        const member = stack.pop()!;
        onStack[member] = 0;
        component.push(member);
        if (member === node) break;
      }
      if (component.length > 1) found.push(component);
    }
  }
  return found;
}

function tail(values: readonly number[]): string {
  return values.length <= 6 ? `[${values.join(' ')}]` : `[… ${values.slice(-5).join(' ')}] (${values.length})`;
}
