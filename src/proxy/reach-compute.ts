/** From an authenticated role to a session at the compute of its endpoint. */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Random} from '#runtime/random.ts';
import {ComputeRefused, type ComputeSession, ComputeUnreachable, loginAtCompute} from '#proxy/compute-login.ts';
import type {ComputeAddress, ControlClient} from '#proxy/control-client.ts';
import {proxyErrors} from '#proxy/errors.ts';
import type {ScramKeys} from '#proxy/scram.ts';
import type {Traffic} from '#proxy/traffic.ts';

export interface Reached {
  readonly session: ComputeSession;
  readonly address: ComputeAddress;
}

const computeLoginMsMax = 30_000;
/** Thirty seconds: a compute that crashed starts anew from storage in less. */
const loginAttemptsMax = 300;
const retryMs = 100;
/** A full compute: many that come at once want little each, and then there is room. */
const fullMsMax = 10_000;
const fullRetryMs = 250;

/**
 * Wakes the compute when needed and logs in; goes on while it is being started or moved, and, unless `whenFull` says otherwise,
 * for 10 s while all its connections are taken. Throws ProxyError or ComputeRefused.
 */
export async function reachCompute(
  endpointId: string,
  startup: ReadonlyMap<string, string>,
  keys: ScramKeys,
  context: {control: ControlClient; traffic: Traffic; clock: Clock; random: Random; log: Log},
  whenFull: 'wait' | 'tell' = 'wait',
): Promise<Reached> {
  const {control, clock, random, log} = context;
  const startedMs = clock.monotonicMs();
  for (let attempt = 0; ; attempt++) {
    const kept = attempt === 0 ? control.lastAddress(endpointId) : undefined;
    const address = kept ?? (await control.wake(endpointId));
    let fail: (error: Error) => void = () => {};
    const deadline = new Promise<never>((_resolve, reject) => (fail = reject));
    deadline.catch(() => {});
    const timer = clock.setTimer(computeLoginMsMax, () =>
      fail(new Error(`no answer within ${computeLoginMsMax / 1000} s`)),
    );
    try {
      const session = await loginAtCompute({address, parameters: startup, keys, random, deadline});
      context.traffic.track(endpointId, session.socket);
      return {session, address};
    } catch (error) {
      if (error instanceof ComputeRefused && error.sqlState === '53300' && whenFull === 'wait') {
        if (clock.monotonicMs() - startedMs > fullMsMax) throw error;
        await clock.sleep(fullRetryMs);
        continue;
      }
      // 57P03: starting up or shutting down. 28P01 at a kept address: another compute may have the port now.
      const again =
        error instanceof ComputeUnreachable ||
        (error instanceof ComputeRefused &&
          (error.sqlState === '57P03' || (error.sqlState === '28P01' && kept !== undefined)));
      if (!again || attempt >= loginAttemptsMax)
        throw error instanceof ComputeUnreachable ? proxyErrors.unreachable(endpointId) : error;
      control.forget(endpointId);
      log.debug('the compute is not there yet', {endpoint: endpointId, error});
      if (kept === undefined) await clock.sleep(retryMs);
    } finally {
      timer.cancel();
    }
  }
}
