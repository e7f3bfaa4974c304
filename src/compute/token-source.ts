/** The compute's tenant token. It lives at most an hour; connections are checked only when they open, so a running compute
 *  survives a control plane that is down (invariant 35): it keeps the last token and goes on trying. */
import type {Clock, Timer} from '#runtime/clock.ts';
import {requestJson} from '#runtime/http.ts';
import type {Log} from '#runtime/log.ts';

const refreshEveryMs = 20 * 60_000;
const retryEveryMs = 15_000;

export class TokenSource {
  #token: string;
  readonly #url: string | undefined;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #onChange: (token: string) => void;
  #timer: Timer | undefined;

  constructor(options: {
    token: string;
    url?: string | undefined;
    clock: Clock;
    log: Log;
    onChange: (token: string) => void;
  }) {
    this.#token = options.token;
    this.#url = options.url;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#onChange = options.onChange;
    if (this.#url !== undefined) this.#schedule(refreshEveryMs);
  }

  get current(): string {
    return this.#token;
  }

  stop(): void {
    this.#timer?.cancel();
  }

  #schedule(delayMs: number): void {
    this.#timer = this.#clock.setTimer(delayMs, () => void this.#refresh());
  }

  async #refresh(): Promise<void> {
    let next = retryEveryMs;
    try {
      const {status, json} = await requestJson({
        method: 'POST',
        url: this.#url!,
        token: this.#token,
        timeoutMs: 10_000,
      });
      const token = typeof json === 'object' && json !== null && 'token' in json ? json.token : undefined;
      if (status === 200 && typeof token === 'string') {
        this.#token = token;
        this.#onChange(token);
        next = refreshEveryMs;
      } else this.#log.warn('the control plane gave no new token; keeping the old one', {status});
    } catch (error) {
      this.#log.warn('the control plane cannot be reached for a new token; keeping the old one', {error});
    }
    this.#schedule(next);
  }
}
