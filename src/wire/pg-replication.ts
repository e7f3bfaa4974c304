/**
 * A client of PostgreSQL's streaming replication protocol, physical only (protocol.sgml "Streaming Replication Protocol";
 * walsender.c). It appears to Postgres as a standby: it takes raw WAL and says how much of it is durable.
 *
 *   const client = await ReplicationClient.connect({address, user, applicationName});
 *   await client.createTemporarySlot(name);
 *   client.start({slot, startLsn, onWal, onEnd});      then client.sendStatus(lsn) whenever durability advances
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {type Address, type Socket, connectReading} from '#runtime/net.ts';

export interface ReplicationConnectOptions {
  readonly address: Address;
  readonly user: string;
  /** What synchronous_standby_names refers to. */
  readonly applicationName: string;
  readonly timeoutMs?: number;
}

export interface SystemIdentity {
  readonly systemId: string;
  readonly timeline: number;
  readonly flushLsn: string;
}

export interface StreamOptions {
  readonly slot?: string;
  readonly startLsn: Lsn;
  /** Contiguous from startLsn, cut anywhere; the bytes may be kept. Never called again after onEnd. */
  readonly onWal: (startLsn: Lsn, bytes: Buffer) => void;
  /** Postgres wants a status now. */
  readonly onReplyRequested: () => void;
  /** Once. 'done': Postgres has shut down in order, after all WAL was confirmed. */
  readonly onEnd: (end: {readonly kind: 'done'} | {readonly kind: 'lost'; readonly reason: Error}) => void;
}

/** Postgres answered with an error. */
export class PostgresError extends Error {
  readonly sqlState: string;
  constructor(sqlState: string, message: string) {
    super(`PostgreSQL: ${message} (SQLSTATE ${sqlState})`);
    this.sqlState = sqlState;
  }
}

/** A message longer than this is no message (walsender sends at most 128 KiB of WAL at once). */
const messageBytesMax = 16 * 1024 * 1024;
/** Read at once; walsender's messages are as large. */
const readBytes = 128 * 1024;
const slabBytes = 1024 * 1024;
/** Full slabs that are remembered until they are released; beyond that the collector has them. */
const fullSlabsMax = 32;
/** Released ones that are kept for later messages, while WAL comes: as much as may be on its way to safekeepers, and some. */
const freeSlabsMax = 24;
const twoPow32 = 4294967296;

export class ReplicationClient {
  readonly #socket: Socket;
  /** Of the message that is arriving: type and length, then its body; how much of the one or the other is here. */
  readonly #header = Buffer.alloc(5);
  #body: Buffer | undefined;
  #have = 0;
  #slab = Buffer.alloc(0);
  #slabUsed = 0;
  /** No WAL in them is at or behind `endLsn`; oldest first. */
  #fullSlabs: {readonly slab: Buffer<ArrayBuffer>; readonly endLsn: number}[] = [];
  #freeSlabs: Buffer<ArrayBuffer>[] = [];
  /** Where the next WAL begins. */
  #nextLsn = 0;
  #onMessage: (type: number, body: Buffer) => void = () => {};
  #onClose: (error: Error) => void = () => {};
  #error: Error | undefined;
  readonly #status = Buffer.alloc(39);

  /** Rejects with PostgresError, or the socket's error. Authentication must be `trust` or `peer`: the socket is local. */
  static async connect(options: ReplicationConnectOptions): Promise<ReplicationClient> {
    const client = new ReplicationClient(options.address);
    const parameters = [
      'user',
      options.user,
      'replication',
      'true',
      'application_name',
      options.applicationName,
      'client_encoding',
      'UTF8',
    ];
    const body = Buffer.from(parameters.map((p) => `${p}\0`).join('') + '\0', 'utf8');
    const startup = Buffer.alloc(8 + body.length);
    startup.writeUInt32BE(startup.length, 0);
    startup.writeUInt32BE(196608, 4);
    body.copy(startup, 8);
    client.#socket.setTimeout(options.timeoutMs ?? 10_000, () =>
      client.#socket.destroy(new Error('PostgreSQL does not answer')),
    );
    client.#socket.write(startup);
    try {
      await client.#untilReady((type, message) => {
        if (type === 0x52 && message.readUInt32BE(0) !== 0)
          throw new Error(
            `PostgreSQL asks for a password; its pg_hba.conf must have "local replication ${options.user} trust" (or peer)`,
          );
      });
    } catch (error) {
      client.close();
      throw error;
    }
    client.#socket.setTimeout(0);
    return client;
  }

  private constructor(address: Address) {
    const socket = connectReading(address, readBytes, (view) => this.#receive(view));
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on('error', (error: Error) => (this.#error ??= error));
    socket.on('close', () => this.#onClose(this.#error ?? new Error('PostgreSQL closed the connection')));
  }

  async identifySystem(): Promise<SystemIdentity> {
    const row = (await this.#query('IDENTIFY_SYSTEM'))[0];
    if (row === undefined || row.length < 3) throw new Error('PostgreSQL gave no answer to IDENTIFY_SYSTEM');
    return {systemId: row[0]!, timeline: Number(row[1]), flushLsn: row[2]!};
  }

  /** Holds WAL back from being recycled while this connection lives. The name: lower-case letters, digits, underscores. */
  async createTemporarySlot(name: string): Promise<void> {
    await this.#query(`CREATE_REPLICATION_SLOT "${name}" TEMPORARY PHYSICAL RESERVE_WAL`);
  }

  /** Asks for WAL from startLsn on. Errors come to onEnd. */
  start(options: StreamOptions): void {
    this.#nextLsn = options.startLsn;
    let ended = false;
    const end = (kind: 'done' | Error): void => {
      if (ended) return;
      ended = true;
      this.#onMessage = () => {};
      options.onEnd(kind === 'done' ? {kind: 'done'} : {kind: 'lost', reason: kind});
    };
    this.#onClose = end;
    this.#onMessage = (type, body) => {
      switch (type) {
        case 0x64: // CopyData
          if (body[0] === 0x77) {
            const lsn = body.readUInt32BE(1) * twoPow32 + body.readUInt32BE(5);
            if (lsn !== this.#nextLsn) {
              this.#socket.destroy(
                new Error(
                  `PostgreSQL sent WAL at ${formatLsn(lsn as Lsn)}, expected ${formatLsn(this.#nextLsn as Lsn)}`,
                ),
              );
              return;
            }
            this.#nextLsn += body.length - 25;
            options.onWal(lsn as Lsn, body.subarray(25));
          } else if (body[0] === 0x6b && body[17] === 1) {
            options.onReplyRequested();
          }
          break;
        case 0x63: // CopyDone
        case 0x43: // CommandComplete: the walsender has seen everything confirmed and exits
          end('done');
          break;
        case 0x45:
          end(readError(body));
          break;
        default: // CopyBothResponse, notices
          break;
      }
    };
    const slot = options.slot === undefined ? '' : `SLOT "${options.slot}" `;
    this.#send(
      0x51,
      Buffer.from(`START_REPLICATION ${slot}PHYSICAL ${formatLsn(options.startLsn)} TIMELINE 1\0`, 'utf8'),
    );
  }

  /** Written, flushed and applied up to `lsn`: releases the commits that wait for it. */
  sendStatus(lsn: Lsn): void {
    // CopyData {'r', write u64, flush u64, apply u64, client time i64, reply wanted u8}, big-endian
    const b = Buffer.from(this.#status);
    b[0] = 0x64;
    b.writeUInt32BE(38, 1);
    b[5] = 0x72;
    const low = lsn % twoPow32;
    const high = (lsn - low) / twoPow32;
    for (const at of [6, 14, 22]) {
      b.writeUInt32BE(high, at);
      b.writeUInt32BE(low, at + 4);
    }
    this.#socket.write(b);
  }

  /**
   * Nobody looks at WAL before `lsn` any more, as it was given to onWal: its memory is used again. Fresh memory for all WAL cost
   * the collector a fifth of the time of a bulk load.
   */
  release(lsn: Lsn): void {
    const full = this.#fullSlabs;
    while (full.length > 0 && full[0]!.endLsn <= lsn) {
      const {slab} = full.shift()!;
      if (this.#freeSlabs.length < freeSlabsMax) this.#freeSlabs.push(slab);
    }
  }

  /** No WAL comes at the moment: what was released goes to the collector. */
  releaseIdle(): void {
    this.#freeSlabs = [];
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  close(): void {
    this.#socket.destroy();
  }

  /** Simple query; rows of text. */
  async #query(sql: string): Promise<string[][]> {
    const rows: string[][] = [];
    this.#send(0x51, Buffer.from(`${sql}\0`, 'utf8'));
    await this.#untilReady((type, body) => {
      if (type === 0x44) rows.push(readRow(body));
    });
    return rows;
  }

  #untilReady(take: (type: number, body: Buffer) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      let failure: Error | undefined;
      this.#onClose = (error) => reject(failure ?? error);
      this.#onMessage = (type, body) => {
        try {
          if (type === 0x45) failure = readError(body);
          else if (type === 0x5a) {
            this.#onMessage = () => {};
            this.#onClose = () => {};
            if (failure) reject(failure);
            else resolve();
          } else take(type, body);
        } catch (error) {
          failure = error instanceof Error ? error : new Error(String(error));
          this.#socket.destroy();
        }
      };
    });
  }

  #send(type: number, body: Buffer): void {
    const head = Buffer.alloc(5);
    head[0] = type;
    head.writeUInt32BE(4 + body.length, 1);
    this.#socket.write(Buffer.concat([head, body]));
  }

  /** `view` is read over again: what is kept of it is copied, each message once, to where it stays. */
  #receive(view: Buffer): void {
    for (let at = 0; at < view.length;) {
      if (this.#body === undefined) {
        const count = view.copy(this.#header, this.#have, at, Math.min(view.length, at + 5 - this.#have));
        at += count;
        this.#have += count;
        if (this.#have < 5) return;
        const length = this.#header.readUInt32BE(1);
        if (length < 4 || length > messageBytesMax) {
          this.#socket.destroy(new Error(`PostgreSQL announced a message of ${length} bytes`));
          return;
        }
        this.#body = this.#take(length - 4);
        this.#have = 0;
      }
      const body = this.#body;
      const count = view.copy(body, this.#have, at);
      at += count;
      this.#have += count;
      if (this.#have < body.length) return;
      this.#body = undefined;
      this.#have = 0;
      this.#onMessage(this.#header[0]!, body);
      if (this.#socket.destroyed) return;
    }
  }

  /** Memory for a message. Many share one large piece: each piece of memory outside the heap costs the collector. */
  #take(length: number): Buffer {
    if (length > slabBytes / 4) return Buffer.allocUnsafeSlow(length);
    if (this.#slab.length - this.#slabUsed < length) {
      if (this.#slab.length > 0) this.#fullSlabs.push({slab: this.#slab, endLsn: this.#nextLsn});
      if (this.#fullSlabs.length > fullSlabsMax) this.#fullSlabs.shift();
      this.#slab = this.#freeSlabs.pop() ?? Buffer.allocUnsafeSlow(slabBytes);
      this.#slabUsed = 0;
    }
    this.#slabUsed += length;
    return this.#slab.subarray(this.#slabUsed - length, this.#slabUsed);
  }
}

function readRow(body: Buffer): string[] {
  const row: string[] = [];
  let at = 2;
  for (let i = body.readUInt16BE(0); i > 0; i--) {
    const length = body.readInt32BE(at);
    at += 4;
    row.push(length < 0 ? '' : body.toString('utf8', at, at + length));
    if (length > 0) at += length;
  }
  return row;
}

function readError(body: Buffer): PostgresError {
  const fields = new Map<string, string>();
  for (const field of body.toString('utf8').split('\0')) if (field !== '') fields.set(field[0]!, field.slice(1));
  return new PostgresError(fields.get('C') ?? 'XX000', fields.get('M') ?? 'unknown error');
}
