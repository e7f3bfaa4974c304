/** The broker keeps the newest word of each safekeeper about each timeline in memory and passes every word on. */
import type {BrokerConfig} from '#broker/config.ts';
import {systemClock} from '#runtime/clock.ts';
import {createLog} from '#runtime/log.ts';
import {type FrameConnection, listenFrames, parseJsonFrame, sendJson} from '#runtime/net.ts';
import {AuthError, TokenVerifier, requireNode} from '#wire/auth.ts';
import {
  type BrokerHello,
  type SafekeeperInfo,
  brokerEntriesMax,
  brokerFrame,
  decodeInfos,
  encodeInfos,
} from '#wire/broker.ts';

/** Older words are forgotten: an active timeline is spoken of every second. */
const expiryMs = 30_000;
const sweepMs = 10_000;
const helloTimeoutMs = 15_000;
/** Words kept, at most: safekeepers × active timelines of the cell. */
const entriesMax = 1_000_000;
/** A subscriber that does not read is cut off; it comes back and gets everything anew. */
const subscriberBytesMax = 16 * 1024 * 1024;

export async function runBroker(config: BrokerConfig): Promise<{readonly port: number; stop(): Promise<void>}> {
  const log = createLog({component: 'broker'});
  const clock = systemClock;
  const verifier = await TokenVerifier.load(config.keysDir, 'broker', clock);
  const known = new Map<string, {readonly info: SafekeeperInfo; readonly atMs: number}>();
  const subscribers = new Set<FrameConnection>();
  /** Closed while their token was being checked. */
  const gone = new WeakSet<FrameConnection>();

  const take = (payload: Buffer): void => {
    const infos = decodeInfos(payload);
    const atMs = clock.monotonicMs();
    for (const info of infos) {
      const key = `${info.tenantId}/${info.timelineId}/${info.nodeId}`;
      if (known.has(key) || known.size < entriesMax) known.set(key, {info, atMs});
    }
    for (const subscriber of subscribers) {
      if (subscriber.bufferedBytes > subscriberBytesMax) {
        log.warn('a subscriber does not read; cutting it off', {peer: subscriber.peer});
        subscriber.destroy();
      } else {
        subscriber.send(brokerFrame.update, payload);
      }
    }
  };

  const welcome = async (connection: FrameConnection, payload: Buffer): Promise<void> => {
    const hello = parseJsonFrame(payload) as Partial<BrokerHello> | null;
    const claims = await verifier.verify(typeof hello?.token === 'string' ? hello.token : undefined);
    if (hello?.role === 'publish') {
      requireNode(claims, 'safekeeper');
      connection.onFrame = (type, frame) => {
        try {
          if (type !== brokerFrame.publish) throw new Error(`frame of type ${type} from a publisher`);
          take(frame);
        } catch (error) {
          log.warn('closing a publisher that sent a bad frame', {peer: connection.peer, error});
          connection.destroy();
        }
      };
      sendJson(connection, brokerFrame.welcome, {});
    } else if (hello?.role === 'subscribe') {
      requireNode(claims, 'pageserver', 'safekeeper', 'control');
      connection.onFrame = () => connection.destroy();
      sendJson(connection, brokerFrame.welcome, {});
      const all = [...known.values()].map((entry) => entry.info);
      for (let i = 0; i < all.length; i += brokerEntriesMax)
        connection.send(brokerFrame.update, encodeInfos(all.slice(i, i + brokerEntriesMax)));
      if (!gone.has(connection)) subscribers.add(connection);
    } else {
      throw new Error('hello must name the role publish or subscribe');
    }
  };

  const listener = await listenFrames({host: config.host, port: config.port}, (connection) => {
    const deadline = clock.setTimer(helloTimeoutMs, () => connection.destroy());
    connection.onClose = () => {
      deadline.cancel();
      subscribers.delete(connection);
      gone.add(connection);
    };
    connection.onFrame = (type, payload) => {
      // One frame before the welcome; a second one is not waited for.
      connection.onFrame = () => connection.destroy();
      if (type !== brokerFrame.hello || payload.length > 64 * 1024) {
        connection.destroy();
        return;
      }
      welcome(connection, payload)
        .then(() => deadline.cancel())
        .catch((error: unknown) => {
          const message = error instanceof Error ? error.message : String(error);
          log.warn('refused a connection', {peer: connection.peer, error: message});
          sendJson(connection, brokerFrame.refused, {
            code: error instanceof AuthError ? error.code : 'bad-request',
            message,
          });
          connection.close();
        });
    };
  });

  let sweeper = clock.setTimer(sweepMs, sweep);
  function sweep(): void {
    const oldest = clock.monotonicMs() - expiryMs;
    for (const [key, entry] of known) if (entry.atMs < oldest) known.delete(key);
    sweeper = clock.setTimer(sweepMs, sweep);
  }

  return {
    port: listener.port,
    async stop() {
      sweeper.cancel();
      await listener.close();
    },
  };
}
