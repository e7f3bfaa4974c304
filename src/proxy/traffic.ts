/** What computes have sent to clients through this proxy, by endpoint, for the control plane's books. */
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';

/** Of a socket: what it has received so far. */
export interface Counted {
  readonly bytesRead: number;
  once(event: 'close', listener: () => void): unknown;
}

const reportEveryMs = 15_000;

export class Traffic {
  readonly #open = new Map<Counted, {readonly endpointId: string; reported: number}>();
  #pending = new Map<string, number>();
  #timer: Timer | undefined;

  /** The compute's end of a session, once it is logged in. */
  track(endpointId: string, socket: Counted): void {
    const entry = {endpointId, reported: socket.bytesRead};
    this.#open.set(socket, entry);
    socket.once('close', () => {
      this.#add(entry, socket.bytesRead);
      this.#open.delete(socket);
    });
  }

  /** Everything since the last time. */
  take(): Record<string, number> {
    for (const [socket, entry] of this.#open) this.#add(entry, socket.bytesRead);
    const taken = Object.fromEntries(this.#pending);
    this.#pending = new Map();
    return taken;
  }

  /** Tells `report` regularly; what it could not take is told again with the next. */
  start(clock: Clock, log: Log, report: (bytes: Record<string, number>) => Promise<void>): void {
    this.#timer = clock.setTimer(reportEveryMs, () => {
      void this.flush(log, report).then(() => {
        if (this.#timer !== undefined) this.start(clock, log, report);
      });
    });
  }

  async flush(log: Log, report: (bytes: Record<string, number>) => Promise<void>): Promise<void> {
    const taken = this.take();
    if (Object.keys(taken).length === 0) return;
    try {
      await report(taken);
    } catch (error) {
      log.debug('the control plane does not take the traffic now', {error});
      for (const [endpointId, bytes] of Object.entries(taken))
        this.#pending.set(endpointId, (this.#pending.get(endpointId) ?? 0) + bytes);
    }
  }

  stop(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  #add(entry: {readonly endpointId: string; reported: number}, bytesRead: number): void {
    const more = bytesRead - entry.reported;
    if (more <= 0) return;
    entry.reported = bytesRead;
    this.#pending.set(entry.endpointId, (this.#pending.get(entry.endpointId) ?? 0) + more);
  }
}
