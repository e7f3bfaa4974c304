/** Asks who is allowed to delete and to report progress: the control plane, which issues generations. */
import type {Clock} from '#runtime/clock.ts';
import {requestJson} from '#runtime/http.ts';

export interface GenerationValidator {
  /** Whether `generation` is still the tenant's latest. Rejects when no answer can be had. */
  validate(tenantId: string, generation: number): Promise<boolean>;
}

/** For a pageserver that is the only one there can be: tests, and `pagoda up` before the control plane answers. */
export const alwaysValid: GenerationValidator = {validate: () => Promise.resolve(true)};

/**
 * POST <url> {tenants: [{id, generation}]} → {tenants: [{id, valid}]}. Requests of one moment go out as one.
 */
export class HttpGenerationValidator implements GenerationValidator {
  readonly #url: string;
  readonly #token: () => Promise<string>;
  readonly #clock: Clock;
  #waiting: {
    tenantId: string;
    generation: number;
    resolve: (valid: boolean) => void;
    reject: (error: Error) => void;
  }[] = [];

  constructor(options: {url: string; token: () => Promise<string>; clock: Clock}) {
    this.#url = options.url;
    this.#token = options.token;
    this.#clock = options.clock;
  }

  validate(tenantId: string, generation: number): Promise<boolean> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({tenantId, generation, resolve, reject});
      if (this.#waiting.length === 1) this.#clock.setTimer(5, () => void this.#send());
    });
  }

  async #send(): Promise<void> {
    const batch = this.#waiting;
    this.#waiting = [];
    try {
      const {status, json} = await requestJson({
        method: 'POST',
        url: this.#url,
        token: await this.#token(),
        timeoutMs: 10_000,
        body: {tenants: batch.map(({tenantId, generation}) => ({id: tenantId, generation}))},
      });
      const answers = (json as {tenants?: {id: string; valid: boolean}[]} | undefined)?.tenants;
      if (status !== 200 || !Array.isArray(answers))
        throw new Error(`validation of generations at ${this.#url} answered ${status}`);
      batch.forEach((asked, i) => asked.resolve(answers[i]?.id === asked.tenantId && answers[i]?.valid === true));
    } catch (error) {
      for (const asked of batch) asked.reject(error as Error);
    }
  }
}
