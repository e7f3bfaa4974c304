/**
 * Feeds a hot standby from the safekeepers: towards Postgres it is a walsender (physical, one timeline), towards a safekeeper a
 * reader of committed WAL. Only whole records are passed on, and two things are looked at on the way:
 *
 *  - the first record, whose predecessor in this standby's WAL is one of ours (postgres/wal/replica-start.ts), and any other
 *    record that does not name the one before it (the synthesised checkpoint of a new primary may not know it): they get the
 *    right predecessor and a checksum to match;
 *  - a record whose redo copies files (CREATE DATABASE … STRATEGY file_copy, ALTER DATABASE … SET TABLESPACE): on a standby whose
 *    files are not all here the copy would be full of zeros. The relay stops before it and asks for a new start behind it.
 */
import {type Lsn, formatLsn, lsn as asLsn, parseLsn} from '#postgres/lsn.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {recordHeaderSize, WalRecord} from '#postgres/wal/record.ts';
import {withPreviousLsn} from '#postgres/wal/replica-start.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {walPageHeaderSize, walPageSize} from '#postgres/wal/segment.ts';
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import {type Listener, listenSockets, type Socket} from '#runtime/net.ts';
import type {SafekeeperAddress} from '#wire/compute-spec.ts';
import {WalStreamClient, WalStreamRefused} from '#wire/wal-stream.ts';

const reconnectMs = 200;
const keepaliveMs = 2000;
/** Records of a safekeeper wait unsent behind a standby that does not read: then the safekeeper waits too. */
const unsentBytesMax = 16 * 1024 * 1024;
const pieceBytesMax = 128 * 1024;
const microsecondsTo2000 = 946_684_800_000_000;
const createDatabaseByFileCopy = 0x00;

export interface WalRelayOptions {
  /** Unix socket, `…/.s.PGSQL.<port>`: where primary_conninfo points. */
  readonly path: string;
  readonly systemId: string;
  readonly tenantId: string;
  readonly timelineId: string;
  readonly safekeepers: readonly SafekeeperAddress[];
  readonly token: () => string;
  /** X, and the start of the record before it in this standby's WAL. */
  readonly startLsn: Lsn;
  readonly previousLsn: Lsn;
  /** WAL of this standby below X, from the start of X's segment on. */
  readonly localWal: {readonly startLsn: Lsn; readonly bytes: Buffer};
  readonly clock: Clock;
  readonly log: Log;
  /** The standby cannot go on from its present base; it needs one at or behind this LSN. Called once. */
  readonly onRebase: (lsn: Lsn, why: string) => void;
}

export interface ReplicaPosition {
  readonly replayLsn: Lsn;
  /** Committed, as the safekeepers said last. */
  readonly commitLsn: Lsn;
  readonly lagSeconds: number;
}

export class WalRelay {
  readonly #options: WalRelayOptions;
  readonly #listener: Listener;
  readonly #sessions = new Set<RelaySession>();
  /** Bytes that differ from the branch's WAL, by position. */
  readonly patches = new Map<number, Buffer>();
  #replayLsn: Lsn;
  #commitLsn: Lsn;
  /** When the standby began to be behind, monotonic ms. */
  #behindSinceMs: number | undefined;
  #rebased = false;
  #stopped = false;

  private constructor(options: WalRelayOptions, listener: Listener) {
    this.#options = options;
    this.#listener = listener;
    this.#replayLsn = options.startLsn;
    this.#commitLsn = options.startLsn;
  }

  static async start(options: WalRelayOptions): Promise<WalRelay> {
    let relay: WalRelay | undefined;
    const listener = await listenSockets({path: options.path}, (socket) => {
      if (relay) relay.#accept(socket);
      else socket.destroy();
    });
    relay = new WalRelay(options, listener);
    return relay;
  }

  get position(): ReplicaPosition {
    const since = this.#behindSinceMs;
    return {
      replayLsn: this.#replayLsn,
      commitLsn: this.#commitLsn,
      lagSeconds: since === undefined ? 0 : (this.#options.clock.monotonicMs() - since) / 1000,
    };
  }

  noteCommit(commitLsn: Lsn): void {
    if (commitLsn <= this.#commitLsn) return;
    this.#commitLsn = commitLsn;
    this.#noteLag();
  }

  noteReplay(replayLsn: Lsn): void {
    if (replayLsn <= this.#replayLsn) return;
    this.#replayLsn = replayLsn;
    // What was new when we last looked may have been replayed by now, and newer WAL have come: it is behind since now.
    if (this.#behindSinceMs !== undefined) this.#behindSinceMs = this.#options.clock.monotonicMs();
    this.#noteLag();
  }

  rebase(lsn: Lsn, why: string): void {
    if (this.#rebased || this.#stopped) return;
    this.#rebased = true;
    this.#options.onRebase(lsn, why);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    for (const session of this.#sessions) session.close();
    await this.#listener.close();
  }

  #noteLag(): void {
    // Padding and page headers behind the last record are committed and never replayed.
    if (this.#commitLsn - this.#replayLsn < walPageHeaderSize(asLsn(0))) this.#behindSinceMs = undefined;
    else this.#behindSinceMs ??= this.#options.clock.monotonicMs();
  }

  #accept(socket: Socket): void {
    const session = new RelaySession(socket, this, this.#options);
    this.#sessions.add(session);
    socket.on('close', () => this.#sessions.delete(session));
  }
}

/** One walreceiver. */
class RelaySession {
  readonly #socket: Socket;
  readonly #relay: WalRelay;
  readonly #options: WalRelayOptions;
  #received: Buffer = Buffer.alloc(0);
  #started = false;
  #closed = false;
  #stream: WalStreamClient | undefined;
  #keepalive: Timer | undefined;

  /** Next byte for the standby. */
  #sentLsn = 0 as Lsn;
  /** Bytes from X on that are not sent yet: a record may not be complete. */
  #waiting: Buffer[] = [];
  #waitingLsn: Lsn;
  readonly #reader: WalReader;
  readonly #record = new WalRecord();
  #lastRecord: Lsn;

  constructor(socket: Socket, relay: WalRelay, options: WalRelayOptions) {
    this.#socket = socket;
    this.#relay = relay;
    this.#options = options;
    this.#waitingLsn = options.startLsn;
    this.#reader = new WalReader({startLsn: options.startLsn});
    this.#lastRecord = options.previousLsn;
    socket.on('data', (chunk: Buffer) => {
      try {
        this.#receive(chunk);
      } catch (error) {
        options.log.error('the walreceiver of the replica said what is not understood', {error});
        this.close();
      }
    });
    socket.on('error', () => {}); // `close` follows
    socket.on('close', () => this.close());
    socket.on('drain', () => this.#stream?.resume());
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#keepalive?.cancel();
    this.#stream?.close();
    this.#socket.destroy();
  }

  #receive(chunk: Buffer): void {
    this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
    for (;;) {
      const bytes = this.#received;
      if (!this.#started) {
        if (bytes.length < 8 || bytes.length < bytes.readInt32BE(0)) return;
        const length = bytes.readInt32BE(0);
        const code = bytes.readInt32BE(4);
        this.#received = bytes.subarray(length);
        // SSLRequest and GSSENCRequest are refused; the socket is local.
        if (code === 80877103 || code === 80877104) this.#socket.write('N');
        else this.#greet();
        continue;
      }
      if (bytes.length < 5 || bytes.length < 1 + bytes.readInt32BE(1)) return;
      const length = bytes.readInt32BE(1);
      const body = bytes.subarray(5, 1 + length);
      const type = String.fromCharCode(bytes[0]!);
      this.#received = bytes.subarray(1 + length);
      if (type === 'Q') this.#query(body.toString('utf8', 0, body.length - 1));
      else if (type === 'd') this.#status(body);
      else if (type === 'X' || type === 'c') this.close();
    }
  }

  #greet(): void {
    this.#started = true;
    const parameters: readonly (readonly [string, string])[] = [
      ['server_version', '15.20'],
      ['server_encoding', 'UTF8'],
      ['client_encoding', 'UTF8'],
      ['integer_datetimes', 'on'],
      ['standard_conforming_strings', 'on'],
    ];
    this.#socket.write(
      Buffer.concat([
        message('R', Buffer.alloc(4)),
        ...parameters.map(([name, value]) => message('S', Buffer.from(`${name}\0${value}\0`))),
        message('K', Buffer.alloc(8)),
        readyForQuery,
      ]),
    );
  }

  #query(text: string): void {
    if (/^IDENTIFY_SYSTEM/i.test(text)) {
      const values = [this.#options.systemId, '1', formatLsn(this.#relay.position.commitLsn), null];
      this.#socket.write(
        Buffer.concat([
          rowDescription(['systemid', 'timeline', 'xlogpos', 'dbname']),
          dataRow(values),
          message('C', Buffer.from('IDENTIFY_SYSTEM\0')),
          readyForQuery,
        ]),
      );
      return;
    }
    const start = /^START_REPLICATION .*?([0-9A-F]+\/[0-9A-F]+)/i.exec(text)?.[1];
    if (start !== undefined) {
      this.#socket.write(message('W', Buffer.from([0, 0, 0])));
      this.#start(parseLsn(start));
      return;
    }
    this.#socket.write(
      Buffer.concat([
        message('E', Buffer.from(`SERROR\0C0A000\0Mthis WAL relay does not know ${text.slice(0, 60)}\0\0`)),
        readyForQuery,
      ]),
    );
  }

  #start(from: Lsn): void {
    const {localWal, startLsn, clock} = this.#options;
    this.#sentLsn = from;
    if (from < localWal.startLsn) {
      this.#relay.rebase(startLsn, `it asks for WAL at ${formatLsn(from)}, from before its base`);
      return;
    }
    if (from < startLsn)
      this.#send(from, localWal.bytes.subarray(from - localWal.startLsn, startLsn - localWal.startLsn));
    const beat = (): void => {
      this.#sayAlive();
      this.#keepalive = clock.setTimer(keepaliveMs, beat);
    };
    beat();
    void this.#connect();
  }

  /** Reads from X on, also when the standby needs less: where records begin is known only from there. */
  async #connect(): Promise<void> {
    const {safekeepers, tenantId, timelineId, token, clock, log} = this.#options;
    for (let attempt = 0; !this.#closed; attempt++) {
      const safekeeper = safekeepers[attempt % safekeepers.length]!;
      try {
        const ended = Promise.withResolvers<Error | undefined>();
        this.#stream = await WalStreamClient.connect({
          address: safekeeper,
          token: token(),
          tenantId,
          timelineId,
          startLsn: this.#reader.pushLsn,
          onWal: (at, bytes, commitLsn) => this.#onWal(at, bytes, commitLsn),
          onKeepalive: (commitLsn) => this.#relay.noteCommit(commitLsn),
          onClose: (reason) => ended.resolve(reason),
        });
        const reason = await ended.promise;
        if (!this.#closed) log.warn('the WAL stream of the replica broke; trying another safekeeper', {error: reason});
      } catch (error) {
        if (this.#closed) return;
        log.warn('no WAL for the replica from this safekeeper', {safekeeper: safekeeper.nodeId, error});
        if (isTooOld(error) && attempt + 1 >= safekeepers.length)
          this.#relay.rebase(this.#options.startLsn, 'its WAL is trimmed at all safekeepers');
      }
      await clock.sleep(reconnectMs);
    }
  }

  #onWal(at: Lsn, bytes: Buffer, commitLsn: Lsn): void {
    this.#relay.noteCommit(commitLsn);
    this.#reader.push(bytes);
    this.#waiting.push(bytes);
    while (this.#reader.next(this.#record)) if (!this.#examine()) return;
    if (this.#reader.failure) {
      this.#options.log.error('committed WAL cannot be read; the replica starts anew', {
        lsn: formatLsn(this.#reader.failure.position),
        reason: this.#reader.failure.reason,
      });
      this.#relay.rebase(asLsn(at + bytes.length), this.#reader.failure.reason);
      return;
    }
    this.#flush(this.#reader.lastRecordEndLsn);
    if (this.#socket.writableLength > unsentBytesMax) this.#stream?.pause();
  }

  /** False: the standby must not replay this record. */
  #examine(): boolean {
    const record = this.#record;
    if (record.rmid === rmgr.database && (record.info & 0xf0) === createDatabaseByFileCopy) {
      this.#flush(record.startLsn);
      this.#relay.rebase(record.endLsn, 'a database was copied file by file');
      return false;
    }
    if (record.prevLsn !== this.#lastRecord) this.#patch(record, this.#lastRecord);
    this.#lastRecord = record.startLsn;
    return true;
  }

  #patch(record: WalRecord, previousLsn: Lsn): void {
    const header = withPreviousLsn(record.whole(), previousLsn);
    const onPage = Math.min(recordHeaderSize, walPageSize - (record.startLsn % walPageSize));
    this.#relay.patches.set(record.startLsn, header.subarray(0, onPage));
    if (onPage === recordHeaderSize) return;
    const nextPage = asLsn(record.startLsn + onPage);
    this.#relay.patches.set(nextPage + walPageHeaderSize(nextPage), header.subarray(onPage));
  }

  /** Passes on what lies below `end`. */
  #flush(end: Lsn): void {
    while (this.#waiting.length > 0 && this.#waitingLsn < end) {
      const piece = this.#waiting[0]!;
      const count = Math.min(piece.length, end - this.#waitingLsn);
      const from = Math.max(0, this.#sentLsn - this.#waitingLsn);
      if (from < count) this.#send(asLsn(this.#waitingLsn + from), piece.subarray(from, count));
      this.#waitingLsn = asLsn(this.#waitingLsn + count);
      if (count === piece.length) this.#waiting.shift();
      else this.#waiting[0] = piece.subarray(count);
    }
  }

  #send(at: Lsn, bytes: Buffer): void {
    for (let offset = 0; offset < bytes.length; offset += pieceBytesMax) {
      const start = asLsn(at + offset);
      const piece = this.#patched(start, bytes.subarray(offset, offset + pieceBytesMax));
      const header = Buffer.alloc(1 + 24);
      header.write('w', 0);
      writeBigLsn(header, 1, start);
      writeBigLsn(header, 9, asLsn(Math.max(start + piece.length, this.#relay.position.commitLsn)));
      this.#writeTime(header, 17);
      this.#socket.write(message('d', header, piece));
    }
    this.#sentLsn = asLsn(at + bytes.length);
  }

  #patched(at: Lsn, bytes: Buffer): Buffer {
    let copy: Buffer | undefined;
    for (const [position, patch] of this.#relay.patches) {
      if (position + patch.length <= at || position >= at + bytes.length) continue;
      copy ??= Buffer.from(bytes);
      const from = Math.max(0, at - position);
      patch.copy(copy, Math.max(0, position - at), from, Math.min(patch.length, at + bytes.length - position));
    }
    return copy ?? bytes;
  }

  #sayAlive(): void {
    const body = Buffer.alloc(1 + 8 + 8 + 1);
    body.write('k', 0);
    writeBigLsn(body, 1, this.#sentLsn);
    this.#writeTime(body, 9);
    // A reply is asked for: it tells how far replay is.
    body[17] = 1;
    if (!this.#closed) this.#socket.write(message('d', body));
  }

  /** Standby status update: 'r', then write, flush and apply position, the time, and whether a reply is wanted. */
  #status(body: Buffer): void {
    if (body[0] !== 0x72 || body.length < 34) return;
    this.#relay.noteReplay(asLsn(Number(body.readBigUInt64BE(17))));
    if (body[33] === 1) this.#sayAlive();
  }

  #writeTime(buffer: Buffer, offset: number): void {
    buffer.writeBigInt64BE(BigInt(this.#options.clock.nowMs()) * 1000n - BigInt(microsecondsTo2000), offset);
  }
}

function isTooOld(error: unknown): boolean {
  return error instanceof WalStreamRefused && error.code === 'wal-trimmed';
}

function writeBigLsn(buffer: Buffer, offset: number, value: Lsn): void {
  buffer.writeUInt32BE(Math.floor(value / 4294967296), offset);
  buffer.writeUInt32BE(value % 4294967296, offset + 4);
}

function message(type: string, ...parts: readonly Buffer[]): Buffer {
  const header = Buffer.alloc(5);
  header.write(type, 0);
  header.writeInt32BE(
    parts.reduce((sum, part) => sum + part.length, 4),
    1,
  );
  return Buffer.concat([header, ...parts]);
}

const readyForQuery = message('Z', Buffer.from('I'));

function rowDescription(names: readonly string[]): Buffer {
  const count = Buffer.alloc(2);
  count.writeInt16BE(names.length);
  const textOid = 25;
  const fields = names.map((name) => {
    const rest = Buffer.alloc(18);
    rest.writeInt32BE(textOid, 6);
    rest.writeInt16BE(-1, 10);
    rest.writeInt32BE(-1, 12);
    return Buffer.concat([Buffer.from(`${name}\0`), rest]);
  });
  return message('T', count, ...fields);
}

function dataRow(values: readonly (string | null)[]): Buffer {
  const count = Buffer.alloc(2);
  count.writeInt16BE(values.length);
  const cells = values.map((value) => {
    const bytes = Buffer.from(value ?? '');
    const length = Buffer.alloc(4);
    length.writeInt32BE(value === null ? -1 : bytes.length);
    return Buffer.concat([length, bytes]);
  });
  return message('D', count, ...cells);
}
