/** Cancel keys. A client gets random ones; the compute's own never leave the proxy. */
import {connectSocket} from '#runtime/net.ts';
import type {Random} from '#runtime/random.ts';
import type {ComputeAddress} from '#proxy/control-client.ts';
import type {FailureThrottle} from '#proxy/limits.ts';
import {encodeCancel} from '#proxy/messages.ts';

interface CancelTarget {
  readonly clientIp: string;
  /** Which compute to tell, and the key it knows; undefined while the client has none. */
  readonly target: () => {readonly address: ComputeAddress; readonly key: Buffer} | undefined;
}

export class CancelRegistry {
  readonly #random: Random;
  readonly #throttle: FailureThrottle;
  readonly #running = new Set<CancelTarget>();
  readonly #targets = new Map<string, CancelTarget>();

  constructor(random: Random, throttle: FailureThrottle) {
    this.#random = random;
    this.#throttle = throttle;
  }

  /** A fresh key for one session; `release` it when the session ends. */
  register(target: CancelTarget): {key: Buffer; release(): void} {
    for (;;) {
      const key = this.#random.bytes(8);
      key[0]! &= 0x7f; // clients show the process id as a signed number
      const name = key.toString('hex');
      if (this.#targets.has(name)) continue;
      this.#targets.set(name, target);
      return {key, release: () => void this.#targets.delete(name)};
    }
  }

  /**
   * Passes a cancel on, one of a session at a time. A wrong key, or one from another address, does nothing; nobody is told (as in
   * Postgres). From an address that guesses, no key is looked at for a while.
   */
  cancel(key: Buffer, clientIp: string): void {
    if (this.#throttle.blocked(clientIp)) return;
    const session = this.#targets.get(key.toString('hex'));
    if (!session || session.clientIp !== clientIp) return this.#throttle.failed(clientIp);
    if (this.#running.has(session)) return;
    const target = session.target();
    if (!target) return;
    const socket = connectSocket(target.address);
    socket.on('error', () => {});
    socket.setTimeout(5000, () => socket.destroy());
    socket.end(encodeCancel(target.key));
    this.#running.add(session);
    socket.on('close', () => this.#running.delete(session));
    socket.resume();
  }
}
