/** The difference of two texts by lines, as `diff -u` prints it. Pure. */

interface Change {
  readonly kind: ' ' | '-' | '+';
  readonly line: string;
}

const contextLines = 3;
/** More edits than this are not worth finding the shortest way: all of the old goes, all of the new comes. */
const editsMax = 4000;

/** Empty when the texts are equal. `from` and `to` are the names in the two header lines. */
export function unifiedDiff(before: string, after: string, from: string, to: string): string {
  if (before === after) return '';
  const changes = compare(linesOf(before), linesOf(after));
  const out = [`--- ${from}`, `+++ ${to}`];
  for (const {start, end} of hunks(changes)) {
    const part = changes.slice(start, end);
    const before = changes.slice(0, start);
    const oldStart = before.filter((c) => c.kind !== '+').length;
    const newStart = before.filter((c) => c.kind !== '-').length;
    const oldCount = part.filter((c) => c.kind !== '+').length;
    const newCount = part.filter((c) => c.kind !== '-').length;
    out.push(`@@ -${range(oldStart, oldCount)} +${range(newStart, newCount)} @@`);
    for (const {kind, line} of part) out.push(kind + line);
  }
  return out.join('\n') + '\n';
}

function linesOf(text: string): string[] {
  const lines = text.split('\n');
  if (lines.at(-1) === '') lines.pop();
  return lines;
}

function range(start: number, count: number): string {
  return `${count === 0 ? start : start + 1},${count}`;
}

/** Ranges of changes with their surroundings; neighbours that touch are one. */
function hunks(changes: readonly Change[]): {start: number; end: number}[] {
  const found: {start: number; end: number}[] = [];
  changes.forEach(({kind}, i) => {
    if (kind === ' ') return;
    const start = Math.max(0, i - contextLines);
    const end = Math.min(changes.length, i + contextLines + 1);
    const last = found.at(-1);
    if (last && start <= last.end) last.end = end;
    else found.push({start, end});
  });
  return found;
}

/** Myers: the shortest edit script, by furthest points on diagonals. */
function compare(a: readonly string[], b: readonly string[]): Change[] {
  const most = Math.min(a.length + b.length, editsMax);
  const trace: Map<number, number>[] = [];
  let v = new Map<number, number>([[1, 0]]);
  for (let d = 0; d <= most; d++) {
    trace.push(new Map(v));
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && (v.get(k - 1) ?? -1) < (v.get(k + 1) ?? -1));
      let x = down ? (v.get(k + 1) ?? 0) : (v.get(k - 1) ?? 0) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      v.set(k, x);
      if (x >= a.length && x - k >= b.length) return walkBack(trace, a, b, k);
    }
    v = new Map(v);
  }
  return [...a.map((line): Change => ({kind: '-', line})), ...b.map((line): Change => ({kind: '+', line}))];
}

function walkBack(
  trace: readonly Map<number, number>[],
  a: readonly string[],
  b: readonly string[],
  last: number,
): Change[] {
  const changes: Change[] = [];
  let x = a.length;
  let y = b.length;
  for (let d = trace.length - 1, k = last; d >= 0; d--) {
    const v = trace[d]!;
    const down = k === -d || (k !== d && (v.get(k - 1) ?? -1) < (v.get(k + 1) ?? -1));
    const from = down ? k + 1 : k - 1;
    const fromX = d === 0 ? 0 : (v.get(from) ?? 0);
    const fromY = d === 0 ? 0 : fromX - from;
    while (x > fromX && y > fromY) {
      changes.push({kind: ' ', line: a[--x]!});
      y--;
    }
    if (d === 0) break;
    if (down) changes.push({kind: '+', line: b[--y]!});
    else changes.push({kind: '-', line: a[--x]!});
    k = from;
  }
  return changes.reverse();
}
