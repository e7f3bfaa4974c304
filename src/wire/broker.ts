/**
 * The broker: who has which WAL, up to where. Safekeepers publish, pageservers subscribe. Best effort: everything in it is
 * a hint, can be lost, and is said again within a second while a timeline is active.
 *
 * Frames: hello (1) JSON `BrokerHello`, welcome (2) JSON {} or refused (3) JSON {code, message}; then from a publisher
 * `publish` (10), to a subscriber `update` (11), both a JSON array of SafekeeperInfo with LSNs as HI/LO. A subscriber first
 * gets everything the broker knows.
 */
import {type Lsn, formatLsn, parseLsn} from '#postgres/lsn.ts';
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import {type FrameConnection, connectFrames, parseJsonFrame, sendJson} from '#runtime/net.ts';
import {shardCountMax} from '#wire/shard.ts';

/** One safekeeper's word about one timeline. host and port: its frame listener. */
export interface SafekeeperInfo {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly nodeId: number;
  readonly host: string;
  readonly port: number;
  readonly term: number;
  readonly flushLsn: Lsn;
  readonly commitLsn: Lsn;
  /** WAL below is in the object store, and the safekeeper has found it there. */
  readonly archivedLsn: Lsn;
  /** Pageservers have uploaded everything below, and their generation was validated. */
  readonly remoteConsistentLsn: Lsn;
  /** The same of each shard, when the tenant has several (shard-feedback.ts). */
  readonly shardLsns?: readonly Lsn[];
}

const lsnFields = ['flushLsn', 'commitLsn', 'archivedLsn', 'remoteConsistentLsn'] as const;

export interface BrokerHello {
  readonly token: string;
  readonly role: 'publish' | 'subscribe';
}

export const brokerFrame = {hello: 1, welcome: 2, refused: 3, publish: 10, update: 11} as const;

/** Entries in one frame, at most. */
export const brokerEntriesMax = 10_000;
const reconnectMs = 1000;
/** A client that this much waits for loses what it publishes: newer news replace it. */
const bufferedBytesMax = 4 * 1024 * 1024;

export function encodeInfos(infos: readonly SafekeeperInfo[]): Buffer {
  return Buffer.from(
    JSON.stringify(
      infos.map((info) => {
        const entry: Record<string, unknown> = {...info};
        for (const field of lsnFields) entry[field] = formatLsn(info[field]);
        if (info.shardLsns !== undefined) entry['shardLsns'] = info.shardLsns.map(formatLsn);
        return entry;
      }),
    ),
  );
}

/** Throws an Error that says what is wrong with the frame. */
export function decodeInfos(payload: Buffer): SafekeeperInfo[] {
  const list = parseJsonFrame(payload);
  if (!Array.isArray(list) || list.length > brokerEntriesMax)
    throw new Error(`a broker frame is an array of at most ${brokerEntriesMax} entries`);
  return list.map((entry: unknown) => {
    const e = entry as Record<string, unknown> | null;
    const {tenantId, timelineId, nodeId, host, port, term} = e ?? {};
    if (
      typeof tenantId !== 'string' ||
      !idPattern.test(tenantId) ||
      typeof timelineId !== 'string' ||
      !idPattern.test(timelineId)
    )
      throw new Error('a broker entry names no tenant and timeline');
    if (!isCount(nodeId) || !isCount(port) || !isCount(term) || typeof host !== 'string' || host.length > 255)
      throw new Error(`a broker entry of timeline ${timelineId} names no safekeeper`);
    const lsn = (field: (typeof lsnFields)[number]): Lsn => {
      const text = e![field];
      if (typeof text !== 'string') throw new Error(`a broker entry of timeline ${timelineId} has no ${field}`);
      return parseLsn(text);
    };
    return {
      tenantId,
      timelineId,
      nodeId,
      host,
      port,
      term,
      flushLsn: lsn('flushLsn'),
      commitLsn: lsn('commitLsn'),
      archivedLsn: lsn('archivedLsn'),
      remoteConsistentLsn: lsn('remoteConsistentLsn'),
      ...(e!['shardLsns'] === undefined ? {} : {shardLsns: shardLsns(e!['shardLsns'], timelineId)}),
    };
  });
}

function shardLsns(value: unknown, timelineId: string): Lsn[] {
  if (!Array.isArray(value) || value.length < 2 || value.length > shardCountMax)
    throw new Error(`a broker entry of timeline ${timelineId} has bad shardLsns`);
  return value.map((text) => parseLsn(String(text)));
}

const idPattern = /^[0-9a-f]{32}$/;

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

export interface BrokerClientOptions {
  readonly address: {readonly host: string; readonly port: number};
  /** Asked at each connect: tokens expire. */
  readonly token: () => Promise<string>;
  readonly clock: Clock;
  readonly log: Log;
}

/** Keeps one connection to the broker, for as long as it takes. */
class BrokerConnection {
  readonly #options: BrokerClientOptions;
  readonly #role: BrokerHello['role'];
  readonly #onUpdate: (infos: SafekeeperInfo[]) => void;
  #connection: FrameConnection | undefined;
  #timer: Timer | undefined;
  #closed = false;
  #complained = false;

  constructor(options: BrokerClientOptions, role: BrokerHello['role'], onUpdate: (infos: SafekeeperInfo[]) => void) {
    this.#options = options;
    this.#role = role;
    this.#onUpdate = onUpdate;
    void this.#connect();
  }

  /** The open connection, or undefined. */
  get current(): FrameConnection | undefined {
    return this.#connection;
  }

  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
    this.#connection?.destroy();
  }

  async #connect(): Promise<void> {
    let connection: FrameConnection;
    try {
      const token = await this.#options.token();
      connection = await connectFrames(this.#options.address);
      if (this.#closed) {
        connection.destroy();
        return;
      }
      connection.onFrame = (type, payload) => {
        if (type === brokerFrame.welcome) {
          this.#connection = connection;
          this.#complained = false;
        } else if (type === brokerFrame.refused) {
          this.#complain(`broker refused: ${payload.toString('utf8').slice(0, 500)}`);
        } else if (type === brokerFrame.update) {
          try {
            this.#onUpdate(decodeInfos(payload));
          } catch (error) {
            this.#complain(`broker sent a bad frame: ${String(error)}`);
            connection.destroy();
          }
        }
      };
      connection.onClose = () => {
        this.#connection = undefined;
        this.#again();
      };
      sendJson(connection, brokerFrame.hello, {token, role: this.#role} satisfies BrokerHello);
    } catch (error) {
      this.#complain(`no broker: ${error instanceof Error ? error.message : String(error)}; trying again every second`);
      this.#again();
    }
  }

  #again(): void {
    if (!this.#closed) this.#timer = this.#options.clock.setTimer(reconnectMs, () => void this.#connect());
  }

  /** Once per outage. */
  #complain(message: string): void {
    if (!this.#complained && !this.#closed) this.#options.log.warn(message);
    this.#complained = true;
  }
}

export class BrokerPublisher {
  readonly #connection: BrokerConnection;

  constructor(options: BrokerClientOptions) {
    this.#connection = new BrokerConnection(options, 'publish', () => {});
  }

  /** Dropped without a word when the broker is not there. */
  publish(infos: readonly SafekeeperInfo[]): void {
    const connection = this.#connection.current;
    if (connection === undefined || infos.length === 0 || connection.bufferedBytes > bufferedBytesMax) return;
    for (let i = 0; i < infos.length; i += brokerEntriesMax)
      connection.send(brokerFrame.publish, encodeInfos(infos.slice(i, i + brokerEntriesMax)));
  }

  close(): void {
    this.#connection.close();
  }
}

export class BrokerSubscriber {
  readonly #connection: BrokerConnection;

  /** `onInfo` is called for each piece of news, repeated ones included. */
  constructor(options: BrokerClientOptions, onInfo: (info: SafekeeperInfo) => void) {
    this.#connection = new BrokerConnection(options, 'subscribe', (infos) => {
      for (const info of infos) onInfo(info);
    });
  }

  close(): void {
    this.#connection.close();
  }
}
