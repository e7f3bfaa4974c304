/**
 * Counters, gauges and histograms in Prometheus text form (exposition format 0.0.4). A handle is a plain number behind
 * a method, so that counting in a hot loop costs an addition.
 */
export type Labels = Readonly<Record<string, string>>;

export interface Counter {
  inc(by?: number): void;
  value(): number;
}
export interface Gauge {
  set(value: number): void;
  value(): number;
}
export interface Histogram {
  observe(value: number): void;
}

type Series = {readonly labels: string; lines(name: string): string[]};
interface Family {
  readonly help: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly series: Map<string, Series>;
}

/** Seconds, from 50 µs to 10 s. */
export const latencyBuckets: readonly number[] = [
  0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
];

export class Metrics {
  readonly #families = new Map<string, Family>();

  /** The same name and labels give the same series. */
  counter(name: string, help: string, labels: Labels = {}): Counter {
    return this.#series(name, help, 'counter', labels, (text) => {
      let total = 0;
      return {
        labels: text,
        inc: (by = 1) => void (total += by),
        value: () => total,
        lines: (n) => [`${n}${text} ${total}`],
      };
    });
  }

  gauge(name: string, help: string, labels: Labels = {}): Gauge {
    return this.#series(name, help, 'gauge', labels, (text) => {
      let current = 0;
      return {
        labels: text,
        set: (to: number) => void (current = to),
        value: () => current,
        lines: (n) => [`${n}${text} ${current}`],
      };
    });
  }

  histogram(name: string, help: string, labels: Labels = {}, buckets: readonly number[] = latencyBuckets): Histogram {
    return this.#series(name, help, 'histogram', labels, (text) => {
      const counts = new Array<number>(buckets.length + 1).fill(0);
      let sum = 0;
      const withLe = (le: string): string => (text === '' ? `{le="${le}"}` : `${text.slice(0, -1)},le="${le}"}`);
      return {
        labels: text,
        observe(value: number) {
          let i = 0;
          while (i < buckets.length && value > buckets[i]!) i++;
          counts[i]!++;
          sum += value;
        },
        lines(n) {
          let running = 0;
          const out = buckets.map((le, i) => `${n}_bucket${withLe(String(le))} ${(running += counts[i]!)}`);
          running += counts[buckets.length]!;
          return [
            ...out,
            `${n}_bucket${withLe('+Inf')} ${running}`,
            `${n}_sum${text} ${sum}`,
            `${n}_count${text} ${running}`,
          ];
        },
      };
    });
  }

  /** Forgets the series of a timeline that is gone. */
  remove(labels: Labels): void {
    const wanted = Object.entries(labels).map(([k, v]) => `${k}="${escape(v)}"`);
    for (const family of this.#families.values())
      for (const key of family.series.keys()) if (wanted.every((w) => key.includes(w))) family.series.delete(key);
  }

  text(): string {
    const out: string[] = [];
    for (const [name, family] of this.#families) {
      out.push(`# HELP ${name} ${family.help}`, `# TYPE ${name} ${family.type}`);
      for (const series of family.series.values()) out.push(...series.lines(name));
    }
    return out.join('\n') + '\n';
  }

  #series<T extends Series>(
    name: string,
    help: string,
    type: Family['type'],
    labels: Labels,
    make: (text: string) => T,
  ): T {
    let family = this.#families.get(name);
    if (!family) this.#families.set(name, (family = {help, type, series: new Map()}));
    const pairs = Object.entries(labels).map(([k, v]) => `${k}="${escape(v)}"`);
    const text = pairs.length === 0 ? '' : `{${pairs.join(',')}}`;
    let series = family.series.get(text);
    if (!series) family.series.set(text, (series = make(text)));
    return series as T;
  }
}

function escape(value: string): string {
  return value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}
