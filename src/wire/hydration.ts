/**
 * The hydration socket: a compute's Postgres backends (extension/agent.c) ask their compute agent for what storage has at
 * the compute's start LSN X, the "base". The agent knows X and speaks to the pageserver; the extension knows neither.
 *
 * A unix stream socket, one connection per backend, no handshake. All integers are little-endian. Requests are answered in
 * any order; a backend waits for one, and may have asked for up to 32 ranges of pages ahead of need. A request changes
 * nothing and may be repeated on a new connection. A backend that gives up (cancel, timeout) closes the connection.
 *
 * Request, 32 bytes:
 *
 *     offset  0 u8  op         4 u32 spc     12 u32 rel      20 u32 requestId
 *             1 u8  fork       8 u32 db      16 u32 block    24 u32 1: packed pages are welcome
 *             2 u16 count                                    28 u32 zero
 *
 * Response, 16 bytes, then payloadLength bytes:
 *
 *     offset  0 u8  op         2 u16 count       8 u32 value
 *             1 u8  status     4 u32 requestId  12 u32 payloadLength
 *
 * status 0: ok. 1: does not exist (no payload). 2: error; the payload is UTF-8 text for the user, and the extension does
 * not try again, so the source should have.
 *
 * | op | asks                                             | answer                                                        |
 * |----|--------------------------------------------------|---------------------------------------------------------------|
 * | 1  | NBLOCKS of (rel, fork)                           | value = blocks, or status 1                                   |
 * | 1  | NBLOCKS of rel with fork 255: all four forks     | payload 4 × u32 by fork number, 0xFFFFFFFF = no such fork;    |
 * |    |                                                  | status 1 when there is none                                   |
 * | 2  | GETPAGES (rel, fork, block, count 1…64)          | payload count × 8192; count may be smaller at the fork's end; |
 * |    |                                                  | value 1: payload as in packed-pages.ts                        |
 * | 3  | LISTDB (db, spc); spc 0 means any tablespace,    | payload entries of 20 bytes: u32 spc, u32 db, u32 rel,        |
 * |    | db 0 the shared relations                        | u8 fork, 3 zero, u32 blocks: every fork of every relation     |
 * | 4  | DBSIZE (db), over all tablespaces                | payload u64 bytes; status 1 or 0 bytes: no such database      |
 *
 * The extension sends op 1 with fork 255 only.
 */
import type {ForkNumber, RelTag} from '#postgres/relation.ts';
import {blockSize, fork} from '#postgres/relation.ts';
import type {PageRun} from '#wire/pages.ts';

export const hydrationOp = {blocks: 1, getPages: 2, listDatabase: 3, databaseSize: 4} as const;
export const hydrationStatus = {ok: 0, missing: 1, error: 2} as const;

/** In the fork field of op 1: all forks of the relation. */
export const allForks = 255;
/** Pages in one request. */
export const hydrationPagesMax = 64;

const requestBytes = 32;
const responseBytes = 16;
const listEntryBytes = 20;
const noSuchFork = 0xffffffff;
/** A backend asks for one thing, and for up to 32 ranges of pages ahead of need. Who asks for more is cut off. */
const unansweredMax = 64;

export interface HydrationRequest {
  readonly op: number;
  readonly fork: number;
  readonly count: number;
  readonly spcNode: number;
  readonly dbNode: number;
  readonly relNode: number;
  readonly block: number;
  readonly requestId: number;
  /** Op 2: the backend can unpack. */
  readonly packed: boolean;
}

export interface HydrationResponse {
  readonly op: number;
  readonly status: number;
  readonly count: number;
  readonly requestId: number;
  readonly value: number;
  readonly payload: Buffer;
}

/** One fork of a relation and its size in blocks. */
export interface HydrationListEntry {
  readonly rel: RelTag;
  readonly blocks: number;
}

/** Where the agent gets the base from. Rejections become status 2 with the error's message. */
export interface HydrationSource {
  /** Blocks of one fork; undefined when storage does not have it. */
  relSize(rel: RelTag): Promise<number | undefined>;
  /** Pages from `block` on, at least one, at most `count`; fewer at the end of the fork. `packed`: they may come packed. */
  getPages(rel: RelTag, block: number, count: number, packed?: boolean): Promise<PageRun>;
  /** Every fork of a database (0: the shared relations) in a tablespace (0: in any). */
  listDb(spcNode: number, dbNode: number): Promise<readonly HydrationListEntry[]>;
  /** Bytes of all relations of a database; 0 or undefined when storage has no such database. */
  dbSize(dbNode: number): Promise<number | undefined>;
}

export class HydrationProtocolError extends Error {}

/**
 * The agent's end of one connection: give it what the socket delivers, it calls `write` with what to send. After
 * `receive` throws, destroy the socket; after the socket closed, call `close` and answers still on their way are dropped.
 */
export class HydrationSession {
  readonly #source: HydrationSource;
  readonly #write: (parts: readonly Buffer[], onWritten?: () => void) => void;
  readonly #decoder = new FixedDecoder(requestBytes, () => 0);
  #unanswered = 0;
  #closed = false;

  /** `write` calls `onWritten`, when there is one, once the system has taken the parts, or never will. */
  constructor(source: HydrationSource, write: (parts: readonly Buffer[], onWritten?: () => void) => void) {
    this.#source = source;
    this.#write = write;
  }

  /** Requests that wait for the source. */
  get unanswered(): number {
    return this.#unanswered;
  }

  /** Throws HydrationProtocolError when the peer is not our extension. */
  receive(chunk: Buffer): void {
    for (const bytes of this.#decoder.push(chunk)) {
      const request = decodeHydrationRequest(bytes);
      if (++this.#unanswered > unansweredMax)
        throw new HydrationProtocolError(
          `hydration socket: more than ${unansweredMax} requests without reading answers`,
        );
      void this.#answer(request);
    }
  }

  close(): void {
    this.#closed = true;
  }

  async #answer(request: HydrationRequest): Promise<void> {
    let parts: readonly Buffer[];
    let run: PageRun | undefined;
    try {
      if (request.op === hydrationOp.getPages) {
        const {spcNode, dbNode, relNode} = request;
        const rel = {spcNode, dbNode, relNode, fork: request.fork as ForkNumber};
        run = await this.#source.getPages(rel, request.block, request.count, request.packed);
        const {bytes, packedPages} = run;
        const isPacked = packedPages !== undefined;
        const answer = {count: packedPages ?? bytes.length / blockSize, value: isPacked ? 1 : 0, payload: [bytes]};
        parts = encodeHydrationResponse(request, answer);
      } else parts = await answerHydrationRequest(this.#source, request);
    } catch (error) {
      parts = encodeHydrationError(request, error instanceof Error ? error.message : String(error));
    }
    this.#unanswered--;
    if (this.#closed) run?.release();
    else if (run === undefined) this.#write(parts);
    else this.#write(parts, () => run.release());
  }
}

/** Asks the source for anything but pages, and encodes its answer. Rejects when the source does. */
async function answerHydrationRequest(source: HydrationSource, request: HydrationRequest): Promise<readonly Buffer[]> {
  const {op, spcNode, dbNode, relNode} = request;
  switch (op) {
    case hydrationOp.blocks: {
      if (request.fork !== allForks) {
        const blocks = await source.relSize({spcNode, dbNode, relNode, fork: request.fork as ForkNumber});
        if (blocks === undefined) return encodeHydrationResponse(request, {status: hydrationStatus.missing});
        return encodeHydrationResponse(request, {value: blocks});
      }
      const sizes = await Promise.all(
        Object.values(fork).map((number) => source.relSize({spcNode, dbNode, relNode, fork: number})),
      );
      if (sizes.every((size) => size === undefined))
        return encodeHydrationResponse(request, {status: hydrationStatus.missing});
      const payload = Buffer.alloc(4 * sizes.length);
      for (const [number, size] of sizes.entries()) payload.writeUInt32LE(size ?? noSuchFork, 4 * number);
      return encodeHydrationResponse(request, {payload: [payload]});
    }
    case hydrationOp.listDatabase:
      return encodeHydrationResponse(request, {payload: [encodeList(await source.listDb(spcNode, dbNode))]});
    default: {
      const bytes = await source.dbSize(dbNode);
      if (bytes === undefined) return encodeHydrationResponse(request, {status: hydrationStatus.missing});
      const payload = Buffer.alloc(8);
      payload.writeUInt32LE(bytes % 2 ** 32, 0);
      payload.writeUInt32LE(Math.floor(bytes / 2 ** 32), 4);
      return encodeHydrationResponse(request, {payload: [payload]});
    }
  }
}

export function encodeHydrationRequest(request: HydrationRequest): Buffer {
  const b = Buffer.alloc(requestBytes);
  b[0] = request.op;
  b[1] = request.fork;
  b.writeUInt16LE(request.count, 2);
  b.writeUInt32LE(request.spcNode, 4);
  b.writeUInt32LE(request.dbNode, 8);
  b.writeUInt32LE(request.relNode, 12);
  b.writeUInt32LE(request.block, 16);
  b.writeUInt32LE(request.requestId, 20);
  b.writeUInt32LE(request.packed ? 1 : 0, 24);
  return b;
}

/** Throws HydrationProtocolError when no backend of ours can have sent these 32 bytes. */
export function decodeHydrationRequest(b: Buffer): HydrationRequest {
  const request: HydrationRequest = {
    op: b[0]!,
    fork: b[1]!,
    count: b.readUInt16LE(2),
    spcNode: b.readUInt32LE(4),
    dbNode: b.readUInt32LE(8),
    relNode: b.readUInt32LE(12),
    block: b.readUInt32LE(16),
    requestId: b.readUInt32LE(20),
    packed: b[24] === 1,
  };
  const {op, count} = request;
  const pages = op === hydrationOp.getPages;
  const forkKnown = request.fork <= fork.init || (op === hydrationOp.blocks && request.fork === allForks);
  if (
    op < hydrationOp.blocks ||
    op > hydrationOp.databaseSize ||
    !forkKnown ||
    (pages ? count < 1 || count > hydrationPagesMax : count !== 0) ||
    b.readUInt32LE(24) > (pages ? 1 : 0) ||
    b.readUInt32LE(28) !== 0
  )
    throw new HydrationProtocolError(`hydration socket: not a request: ${b.toString('hex')}`);
  return request;
}

/** Header and payload, to be written in this order. */
export function encodeHydrationResponse(
  request: Pick<HydrationRequest, 'op' | 'requestId'>,
  answer: {status?: number; count?: number; value?: number; payload?: readonly Buffer[]},
): readonly Buffer[] {
  const payload = answer.payload ?? [];
  const header = Buffer.alloc(responseBytes);
  header[0] = request.op;
  header[1] = answer.status ?? hydrationStatus.ok;
  header.writeUInt16LE(answer.count ?? 0, 2);
  header.writeUInt32LE(request.requestId, 4);
  header.writeUInt32LE(answer.value ?? 0, 8);
  header.writeUInt32LE(
    payload.reduce((total, part) => total + part.length, 0),
    12,
  );
  return [header, ...payload];
}

export function encodeHydrationError(
  request: Pick<HydrationRequest, 'op' | 'requestId'>,
  message: string,
): readonly Buffer[] {
  return encodeHydrationResponse(request, {status: hydrationStatus.error, payload: [Buffer.from(message, 'utf8')]});
}

/** The backend's end, for tests and tools: responses out of a byte stream. */
export class HydrationResponseDecoder {
  readonly #decoder = new FixedDecoder(responseBytes, (header) => header.readUInt32LE(12));

  push(chunk: Buffer): HydrationResponse[] {
    return this.#decoder.push(chunk).map((b) => ({
      op: b[0]!,
      status: b[1]!,
      count: b.readUInt16LE(2),
      requestId: b.readUInt32LE(4),
      value: b.readUInt32LE(8),
      payload: b.subarray(responseBytes),
    }));
  }
}

/** Payload of op 1 for all forks: blocks by fork number. */
export function decodeAllForks(payload: Buffer): (number | undefined)[] {
  if (payload.length !== 16) throw new HydrationProtocolError(`sizes of forks: ${payload.length} bytes instead of 16`);
  return [0, 4, 8, 12].map((at) => {
    const blocks = payload.readUInt32LE(at);
    return blocks === noSuchFork ? undefined : blocks;
  });
}

/** Payload of op 3. */
export function decodeHydrationList(payload: Buffer): HydrationListEntry[] {
  if (payload.length % listEntryBytes !== 0)
    throw new HydrationProtocolError(`list of relations: ${payload.length} bytes are not whole entries`);
  const entries: HydrationListEntry[] = [];
  for (let at = 0; at < payload.length; at += listEntryBytes) {
    const rel: RelTag = {
      spcNode: payload.readUInt32LE(at),
      dbNode: payload.readUInt32LE(at + 4),
      relNode: payload.readUInt32LE(at + 8),
      fork: payload[at + 12] as ForkNumber,
    };
    entries.push({rel, blocks: payload.readUInt32LE(at + 16)});
  }
  return entries;
}

/** Counters of the extension since Postgres started, in the order of enum Metric in extension/pagoda.h. */
const metricNames = [
  'pagesFetched',
  'fetchRequests',
  'sizeRequests',
  'listRequests',
  'waitMicroseconds',
  'localReads',
  'pagesStored',
  'pagesLate',
  'zeroPages',
  'filesCreated',
  'connects',
  'requestFailures',
  'guardRecords',
  'throttled',
  'throttleMicroseconds',
] as const;

export type ExtensionMetrics = Readonly<Record<(typeof metricNames)[number], number>>;

/**
 * Reads `<data directory>/pagoda_metrics`, which the extension maps: 8 bytes "PGDMETR1", u32 count, u32 zero, count × u64.
 * Undefined when it is not (yet) such a file.
 */
export function decodeExtensionMetrics(file: Buffer): ExtensionMetrics | undefined {
  const header = 16;
  if (file.length < header + 8 * metricNames.length || file.toString('latin1', 0, 8) !== 'PGDMETR1') return undefined;
  if (file.readUInt32LE(8) < metricNames.length) return undefined;
  const values = metricNames.map((name, i) => {
    const at = header + 8 * i;
    return [name, file.readUInt32LE(at) + file.readUInt32LE(at + 4) * 2 ** 32] as const;
  });
  return Object.fromEntries(values) as ExtensionMetrics;
}

function encodeList(entries: readonly HydrationListEntry[]): Buffer {
  const payload = Buffer.alloc(entries.length * listEntryBytes);
  let at = 0;
  for (const {rel, blocks} of entries) {
    payload.writeUInt32LE(rel.spcNode, at);
    payload.writeUInt32LE(rel.dbNode, at + 4);
    payload.writeUInt32LE(rel.relNode, at + 8);
    payload[at + 12] = rel.fork;
    payload.writeUInt32LE(blocks, at + 16);
    at += listEntryBytes;
  }
  return payload;
}

/** Cuts a stream into messages of a fixed header and as many bytes more as the header says. */
class FixedDecoder {
  readonly #headerBytes: number;
  readonly #more: (header: Buffer) => number;
  #parts: Buffer[] = [];
  #have = 0;

  constructor(headerBytes: number, more: (header: Buffer) => number) {
    this.#headerBytes = headerBytes;
    this.#more = more;
  }

  push(chunk: Buffer): Buffer[] {
    this.#parts.push(chunk);
    this.#have += chunk.length;
    const messages: Buffer[] = [];
    for (;;) {
      if (this.#have < this.#headerBytes) return messages;
      const header = this.#first(this.#headerBytes);
      const length = this.#headerBytes + this.#more(header);
      if (this.#have < length) return messages;
      const all = this.#first(length);
      messages.push(all.subarray(0, length));
      const rest = all.subarray(length);
      this.#parts = rest.length > 0 ? [rest, ...this.#parts.slice(1)] : this.#parts.slice(1);
      this.#have -= length;
    }
  }

  /** The first part, made to hold at least `length` bytes. The caller knows that so many are there. */
  #first(length: number): Buffer {
    if (this.#parts[0]!.length >= length) return this.#parts[0]!;
    this.#parts = [Buffer.concat(this.#parts)];
    return this.#parts[0]!;
  }
}
