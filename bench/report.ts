/**
 * What every benchmark does the same way: alternates its two sides, takes medians, and ends with one line of JSON on
 * stdout. Everything else goes to stderr, so that the line can be piped.
 */
import {loadavg} from 'node:os';

/** One line of JSON: `ratio` is Pagoda ÷ reference so that more than 1 is better. */
export interface BenchReport {
  readonly name: string;
  readonly ratio?: number;
  readonly p50Ms?: number;
  readonly p99Ms?: number;
  readonly mbPerSecond?: number;
  readonly [detail: string]: unknown;
}

export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** The closing line. `load` is what else ran: figures of a busy machine are not worth much. */
export function printReport(report: BenchReport): void {
  const machine = {date: new Date().toISOString(), node: process.version, load: loadavg()[0]};
  process.stdout.write(`${JSON.stringify(roundNumbers({...report, ...machine}))}\n`);
}

export interface Sides<A, B> {
  readonly rounds: number;
  readonly pagoda: (round: number) => Promise<A>;
  readonly reference: (round: number) => Promise<B>;
}

/** A B A B …: what disturbs the machine for a while disturbs both. */
export async function alternate<A, B>(sides: Sides<A, B>): Promise<{pagoda: A[]; reference: B[]}> {
  const pagoda: A[] = [];
  const reference: B[] = [];
  for (let round = 0; round < sides.rounds; round++) {
    pagoda.push(await sides.pagoda(round));
    reference.push(await sides.reference(round));
  }
  return {pagoda, reference};
}

/** Of at least one number; the mean of the middle two when there are two. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((x, y) => x - y);
  const middle = sorted.length >>> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** The smallest value that at least `percent` % of the values do not exceed. */
export function percentile(values: readonly number[], percent: number): number {
  const sorted = values.toSorted((x, y) => x - y);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1))]!;
}

/** Four significant digits say enough. */
function roundNumbers(value: unknown): unknown {
  if (typeof value === 'number') return Number.isInteger(value) ? value : Number(value.toPrecision(4));
  if (Array.isArray(value)) return value.map(roundNumbers);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, roundNumbers(inner)]));
}

/** A table on stderr: first column left, the others right. */
export function sayTable(rows: readonly (readonly string[])[]): void {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => (row[i] ?? '').length)));
  for (const row of rows)
    say(row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  '));
}
