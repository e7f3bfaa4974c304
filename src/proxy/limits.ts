/** Bounds on what a peer may hold or try before it is authenticated. */
import type {Clock} from '#runtime/clock.ts';

export const authenticationMsMax = 15_000;
const openingMax = 2_000;

/** Connections that are not authenticated yet. Above the limit the oldest goes: silent ones cannot keep others out. */
export class Openings {
  readonly #max: number;
  readonly #evict = new Set<() => void>();

  constructor(max = openingMax) {
    this.#max = max;
  }

  /** Gives what takes it out again; `evict` is called when its place is needed. */
  add(evict: () => void): () => void {
    if (this.#evict.size >= this.#max) {
      const [oldest] = this.#evict;
      this.#evict.delete(oldest!);
      oldest!();
    }
    this.#evict.add(evict);
    return () => void this.#evict.delete(evict);
  }
}

/** Wrong passwords of one endpoint and address. */
export const wrongPasswordsMax = 20;
/** Wrong cancel keys of one address. A cancel that comes when its session has just ended is one, too. */
export const wrongCancelsMax = 1000;
const windowMs = 60_000;
const entriesMax = 50_000;

/** Failures by who fails: above the limit, no further try is looked at for the rest of the minute. */
export class FailureThrottle {
  readonly #clock: Clock;
  readonly #max: number;
  readonly #failures = new Map<string, {count: number; sinceMs: number}>();

  constructor(clock: Clock, max: number) {
    this.#clock = clock;
    this.#max = max;
  }

  blocked(key: string): boolean {
    const entry = this.#failures.get(key);
    return entry !== undefined && entry.count >= this.#max && this.#clock.monotonicMs() - entry.sinceMs < windowMs;
  }

  failed(key: string): void {
    const now = this.#clock.monotonicMs();
    const entry = this.#failures.get(key);
    if (entry && now - entry.sinceMs < windowMs) entry.count++;
    else {
      this.#failures.delete(key);
      this.#failures.set(key, {count: 1, sinceMs: now});
      if (this.#failures.size > entriesMax) this.#failures.delete(this.#failures.keys().next().value!);
    }
  }
}

/** True when `ip` is in one of `allowed`: addresses, CIDR blocks or ranges `a-b`; IPv4 (also mapped) only; empty allows all. */
export function ipAllowed(ip: string, allowed: readonly string[]): boolean {
  if (allowed.length === 0) return true;
  const own = ipv4(ip.replace(/^::ffff:/i, ''));
  return allowed.some((entry) => {
    if (entry === ip) return true;
    if (own === undefined) return false;
    const [from, to] = entry.split('-').map((p) => ipv4(p.trim()));
    if (entry.includes('-')) return from !== undefined && to !== undefined && own >= from && own <= to;
    const [base, bits] = entry.split('/');
    const network = ipv4(base ?? '');
    const length = bits === undefined ? 32 : Number(bits);
    if (network === undefined || !Number.isInteger(length) || length < 0 || length > 32) return false;
    const size = 2 ** (32 - length);
    return Math.floor(own / size) === Math.floor(network / size);
  });
}

function ipv4(text: string): number | undefined {
  const parts = text.split('.').map(Number);
  if (parts.length !== 4 || parts.some((p) => !Number.isInteger(p) || p < 0 || p > 255)) return undefined;
  return parts.reduce((sum, p) => sum * 256 + p, 0);
}
