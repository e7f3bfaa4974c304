/** What the proxy asks the control plane. Answers for running endpoints are kept, so that they outlive its absence. */
import type {Clock} from '#runtime/clock.ts';
import {requestJson} from '#runtime/http.ts';
import type {TokenIssuer} from '#wire/auth.ts';
import {proxyErrors} from '#proxy/errors.ts';
import {type ScramVerifier, parseVerifier} from '#proxy/scram.ts';

export interface Access {
  readonly endpointId: string;
  /** Undefined: there is no such role, or it cannot log in. */
  readonly verifier: ScramVerifier | undefined;
  /** Empty: everyone. */
  readonly allowedIps: readonly string[];
}

export interface ComputeAddress {
  readonly host: string;
  readonly port: number;
}

const wakeMsMax = 60_000;
const accessFreshMs = 5_000;
/** An answer younger than this is not doubted: guessing passwords must not become requests to the control plane. */
const doubtAfterMs = 250;
/** With an older answer at hand nobody waits longer than this for a control plane that does not answer. */
const accessPatienceMs = 1_500;
/** When the control plane is away, an older answer serves connections to what runs. */
const accessStaleMsMax = 3_600_000;
const entriesMax = 10_000;

interface Kept<T> {
  readonly value: T;
  readonly atMs: number;
  /** When it was last asked for again, in vain. */
  readonly triedAtMs: number;
}

export class ControlClient {
  readonly #url: string;
  readonly #issuer: TokenIssuer;
  readonly #clock: Clock;
  readonly #access = new Map<string, Kept<Access>>();
  readonly #addresses = new Map<string, ComputeAddress>();

  constructor(options: {url: string; issuer: TokenIssuer; clock: Clock}) {
    this.#url = options.url;
    this.#issuer = options.issuer;
    this.#clock = options.clock;
  }

  /** `endpoint` undefined: the one endpoint, where there is only one. Throws ProxyError when it does not exist. */
  async access(endpoint: string | undefined, role: string): Promise<Access> {
    const key = JSON.stringify([endpoint ?? '', role]);
    const kept = this.#access.get(key);
    const now = this.#clock.monotonicMs();
    if (kept && now - Math.max(kept.atMs, kept.triedAtMs) < accessFreshMs) return kept.value;
    const mayServe = kept !== undefined && now - kept.atMs < accessStaleMsMax;
    const query = new URLSearchParams({role, ...(endpoint === undefined ? {} : {endpoint})});
    let answer: {status: number; json: unknown};
    try {
      answer = await this.#ask(
        'GET',
        `/internal/v1/endpoint_access?${query.toString()}`,
        mayServe ? accessPatienceMs : 10_000,
      );
    } catch {
      if (!mayServe) throw proxyErrors.control();
      keep(this.#access, key, {...kept, triedAtMs: this.#clock.monotonicMs()});
      return kept.value;
    }
    if (answer.status === 404) {
      this.#access.delete(key);
      throw endpoint === undefined ? proxyErrors.noEndpoint() : proxyErrors.unknownEndpoint(endpoint);
    }
    if (answer.status !== 200) throw proxyErrors.control();
    const json = answer.json as {endpointId?: string; scramVerifier?: string; allowedIps?: string[]};
    const access: Access = {
      endpointId: json.endpointId ?? endpoint ?? '',
      verifier: json.scramVerifier === undefined ? undefined : parseVerifier(json.scramVerifier),
      allowedIps: json.allowedIps ?? [],
    };
    keep(this.#access, key, {value: access, atMs: now, triedAtMs: now});
    return access;
  }

  /** A login failed by an answer that was kept: the password may be newer. The next login asks again. True when there was one. */
  doubt(endpoint: string | undefined, role: string): boolean {
    const key = JSON.stringify([endpoint ?? '', role]);
    const kept = this.#access.get(key);
    const now = this.#clock.monotonicMs();
    if (kept === undefined || now - kept.atMs < doubtAfterMs) return false;
    keep(this.#access, key, {value: kept.value, atMs: Math.min(kept.atMs, now - accessFreshMs), triedAtMs: -Infinity});
    return true;
  }

  /** Bytes that clients were sent, by endpoint. Throws when the control plane does not take them. */
  async reportTransfer(bytes: Readonly<Record<string, number>>): Promise<void> {
    const {status} = await this.#ask('POST', '/internal/v1/transfer', 5000, {bytes});
    if (status !== 200) throw proxyErrors.control();
  }

  /** Where the compute was last; connect there first. */
  lastAddress(endpointId: string): ComputeAddress | undefined {
    return this.#addresses.get(endpointId);
  }

  forget(endpointId: string): void {
    this.#addresses.delete(endpointId);
  }

  /** Starts the compute when it sleeps. Calls at the same time share one start (at the control plane). Throws ProxyError. */
  async wake(endpointId: string): Promise<ComputeAddress> {
    const deadline = this.#clock.monotonicMs() + wakeMsMax;
    for (let delayMs = 100; ; delayMs = Math.min(delayMs * 1.6, 2000)) {
      let why = 'the control plane cannot be reached';
      try {
        const {status, json} = await this.#ask(
          'POST',
          `/internal/v1/endpoints/${encodeURIComponent(endpointId)}/wake`,
          wakeMsMax,
        );
        const body = json as {host?: string; port?: number; code?: string; message?: string};
        if (status === 200 && body.host !== undefined && body.port !== undefined) {
          const address = {host: body.host, port: body.port};
          keep(this.#addresses, endpointId, address);
          return address;
        }
        if (status === 404) throw proxyErrors.unknownEndpoint(endpointId);
        if (body.code === 'endpoint_disabled') throw proxyErrors.disabled(endpointId);
        why = body.message ?? `the control plane answered ${status}`;
        if (status !== 423 && status !== 409 && status !== 503) throw proxyErrors.wake(endpointId, why);
      } catch (error) {
        if (error instanceof Error && 'sqlState' in error) throw error;
      }
      if (this.#clock.monotonicMs() + delayMs > deadline) throw proxyErrors.wake(endpointId, why);
      await this.#clock.sleep(delayMs);
    }
  }

  /** The endpoint of a branch (or of an endpoint's branch) at a point of its past. Throws ProxyError. */
  async pointInTime(target: string, point: {readonly lsn?: string; readonly timestamp?: string}): Promise<string> {
    let answer: {status: number; json: unknown};
    try {
      answer = await this.#ask('POST', '/internal/v1/point_in_time', wakeMsMax, {target, ...point});
    } catch {
      throw proxyErrors.control();
    }
    const {endpointId, message} = answer.json as {endpointId?: string; message?: string};
    if (answer.status === 404) throw proxyErrors.unknownEndpoint(target);
    if (answer.status !== 200 || endpointId === undefined)
      throw proxyErrors.pointInTime(message ?? `the control plane answered ${answer.status}`);
    return endpointId;
  }

  async #ask(
    method: string,
    path: string,
    timeoutMs: number,
    body?: unknown,
  ): Promise<{status: number; json: unknown}> {
    const token = await this.#issuer.sign({aud: 'control', scope: 'node'});
    return requestJson({method, url: this.#url + path, token, timeoutMs, ...(body === undefined ? {} : {body})});
  }
}

/** Oldest first out. */
function keep<T>(map: Map<string, T>, key: string, value: T): void {
  map.delete(key);
  map.set(key, value);
  if (map.size > entriesMax) map.delete(map.keys().next().value!);
}
