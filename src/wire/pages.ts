/**
 * The page service: what a compute agent asks a pageserver, and the answers. Both ends of every frame are here.
 *
 * Transport: #runtime/net.ts frames. The connection is for one timeline: it opens with
 * `hello` {token, tenantId (of a shard: wire/shard.ts), timelineId}, answered by `welcome` {} or `refused` {code, message}. After that every request is
 * one frame of 44 bytes and has exactly one answer with the same requestId; requests are pipelined and may be answered in
 * any order. All numbers are little-endian.
 *
 * Request (every type, unused fields 0):
 *   u32 requestId | u16 count | u8 fork | u8 1: packed pages are welcome | u64 requestLsn | u64 notModifiedSinceLsn |
 *   u32 spcNode | u32 dbNode | u32 relNode | u32 blockNumber | u32 0
 * Answers: u32 requestId, then
 *   pages      u16 count | u16 0 | count × 8192 bytes
 *   packedPages  u16 count | u16 0 | as in packed-pages.ts; only where they are welcome
 *   relSize    u8 exists | 3 × 0 | u32 blocks
 *   relExists  u8 exists | 3 × 0
 *   dbSize     u64 bytes
 *   lease      u64 milliseconds granted
 *   listDb     n × {u32 spcNode, u32 dbNode, u32 relNode, u8 fork, 3 × 0, u32 blocks}
 *   error      u8 index in pageErrorCodes | 3 × 0 | UTF-8 message
 *
 * lease: history at requestLsn stays readable for blockNumber seconds, or for what is granted; asking again prolongs it. A
 * compute holds one on its start LSN.
 *
 * LSNs: a read is made at `requestLsn`. It waits until the pageserver has ingested up to `notModifiedSinceLsn` (at most
 * requestLsn): the caller promises that what it reads has not changed in (notModifiedSinceLsn, requestLsn].
 */
import {type ForkNumber, type RelTag, blockSize, formatRel} from '#postgres/relation.ts';
import {type Lsn, formatLsn, readLsn64, writeLsn64} from '#postgres/lsn.ts';
import {type FrameConnection, connectFrames, parseJsonFrame, sendJson} from '#runtime/net.ts';

/** Pages in one answer, at most. */
export const pagesPerRequestMax = 64;

export const pageFrame = {
  hello: 1,
  welcome: 2,
  refused: 3,
  getPages: 16,
  relSize: 17,
  relExists: 18,
  dbSize: 19,
  listDb: 20,
  lease: 21,
  pages: 32,
  relSizeAnswer: 33,
  relExistsAnswer: 34,
  dbSizeAnswer: 35,
  listDbAnswer: 36,
  leaseAnswer: 37,
  packedPages: 38,
  error: 47,
} as const;

/**
 * Codes of an error answer. The position is on the wire: only append.
 * beyond-end: the first block lies at or behind the relation's end. lsn-timeout: ingest did not reach the LSN in time.
 * lsn-too-old: history at that LSN is no longer kept. redo-failed: a WAL record of this page cannot be applied.
 * corrupt: stored bytes fail their checksum. unavailable: the object store or the service cannot answer now; retry.
 * conflict: what is asked contradicts what is there (management only).
 * not-attached: this pageserver does not hold the tenant, or no longer under its newest generation; the control plane knows who does.
 * wrong-shard: another shard of the tenant keeps that block (wire/shard.ts).
 * disconnected is never sent: the client reports it for requests that lost their connection.
 */
export const pageErrorCodes = [
  'internal',
  'bad-request',
  'not-found',
  'beyond-end',
  'lsn-timeout',
  'lsn-too-old',
  'redo-failed',
  'corrupt',
  'unavailable',
  'disconnected',
  'conflict',
  'not-attached',
  'wrong-shard',
] as const;
export type PageErrorCode = (typeof pageErrorCodes)[number];

/** What a failed page request throws at the client. `refused` carries the code of the refused hello in the message. */
export class PageServiceError extends Error {
  readonly code: PageErrorCode;
  constructor(code: PageErrorCode, message: string) {
    super(message);
    this.code = code;
  }
}

export type PageRequestKind = 'getPages' | 'relSize' | 'relExists' | 'dbSize' | 'listDb' | 'lease';

export interface PageRequest {
  readonly kind: PageRequestKind;
  readonly requestId: number;
  readonly requestLsn: Lsn;
  readonly notModifiedSinceLsn: Lsn;
  readonly spcNode: number;
  readonly dbNode: number;
  readonly relNode: number;
  readonly fork: ForkNumber;
  readonly blockNumber: number;
  readonly count: number;
  /** getPages: who asks can unpack. */
  readonly packed: boolean;
}

/** One fork of a relation and its size. */
export interface RelListEntry {
  readonly rel: RelTag;
  readonly blocks: number;
}

const requestBytes = 44;
const listEntryBytes = 20;

export function encodePageRequest(r: PageRequest): Buffer {
  const b = Buffer.alloc(requestBytes);
  b.writeUInt32LE(r.requestId, 0);
  b.writeUInt16LE(r.count, 4);
  b[6] = r.fork;
  b[7] = r.packed ? 1 : 0;
  writeLsn64(b, 8, r.requestLsn);
  writeLsn64(b, 16, r.notModifiedSinceLsn);
  b.writeUInt32LE(r.spcNode, 24);
  b.writeUInt32LE(r.dbNode, 28);
  b.writeUInt32LE(r.relNode, 32);
  b.writeUInt32LE(r.blockNumber, 36);
  return b;
}

/** The request in a frame. Throws PageServiceError 'bad-request' for an unknown type, length, fork or count. */
export function decodePageRequest(type: number, b: Buffer): PageRequest {
  const kind = requestKinds.get(type);
  if (kind === undefined) throw new PageServiceError('bad-request', `page service: unknown request type ${type}`);
  if (b.length !== requestBytes)
    throw new PageServiceError(
      'bad-request',
      `page service: ${kind} request of ${b.length} bytes, expected ${requestBytes}`,
    );
  const fork = b[6]!;
  const count = b.readUInt16LE(4);
  if (fork > 3) throw new PageServiceError('bad-request', `page service: fork ${fork} does not exist`);
  if (kind === 'getPages' && (count < 1 || count > pagesPerRequestMax))
    throw new PageServiceError(
      'bad-request',
      `page service: ${count} pages asked, 1 to ${pagesPerRequestMax} are allowed`,
    );
  let requestLsn: Lsn;
  let notModifiedSinceLsn: Lsn;
  try {
    requestLsn = readLsn64(b, 8);
    notModifiedSinceLsn = readLsn64(b, 16);
  } catch {
    throw new PageServiceError('bad-request', 'page service: an LSN of the request is above 2^53');
  }
  if (notModifiedSinceLsn > requestLsn)
    throw new PageServiceError('bad-request', 'page service: notModifiedSinceLsn is above requestLsn');
  return {
    kind,
    requestId: b.readUInt32LE(0),
    requestLsn,
    notModifiedSinceLsn,
    spcNode: b.readUInt32LE(24),
    dbNode: b.readUInt32LE(28),
    relNode: b.readUInt32LE(32),
    fork: fork as ForkNumber,
    blockNumber: b.readUInt32LE(36),
    count,
    packed: b[7] === 1,
  };
}

/** The frame type that carries a request. */
export function requestFrameType(kind: PageRequestKind): number {
  return pageFrame[kind];
}

const requestKinds = new Map<number, PageRequestKind>(
  (['getPages', 'relSize', 'relExists', 'dbSize', 'listDb', 'lease'] as const).map((kind) => [pageFrame[kind], kind]),
);

// Answers, server side. The page bytes themselves are sent as further parts of the frame, uncopied.

export function encodePagesHeader(requestId: number, count: number): Buffer {
  const b = Buffer.alloc(8);
  b.writeUInt32LE(requestId, 0);
  b.writeUInt16LE(count, 4);
  return b;
}

export function encodeRelSizeAnswer(requestId: number, blocks: number | undefined): Buffer {
  const b = Buffer.alloc(12);
  b.writeUInt32LE(requestId, 0);
  b[4] = blocks === undefined ? 0 : 1;
  b.writeUInt32LE(blocks ?? 0, 8);
  return b;
}

export function encodeRelExistsAnswer(requestId: number, exists: boolean): Buffer {
  const b = Buffer.alloc(8);
  b.writeUInt32LE(requestId, 0);
  b[4] = exists ? 1 : 0;
  return b;
}

export function encodeDbSizeAnswer(requestId: number, bytes: number): Buffer {
  const b = Buffer.alloc(12);
  b.writeUInt32LE(requestId, 0);
  writeLsn64(b, 4, bytes as Lsn); // the same u64 form
  return b;
}

export function encodeLeaseAnswer(requestId: number, grantedMs: number): Buffer {
  return encodeDbSizeAnswer(requestId, grantedMs); // the same form
}

export function encodeListDbAnswer(requestId: number, entries: readonly RelListEntry[]): Buffer {
  const b = Buffer.alloc(4 + entries.length * listEntryBytes);
  b.writeUInt32LE(requestId, 0);
  let at = 4;
  for (const {rel, blocks} of entries) {
    b.writeUInt32LE(rel.spcNode, at);
    b.writeUInt32LE(rel.dbNode, at + 4);
    b.writeUInt32LE(rel.relNode, at + 8);
    b[at + 12] = rel.fork;
    b.writeUInt32LE(blocks, at + 16);
    at += listEntryBytes;
  }
  return b;
}

export function encodePageError(requestId: number, code: PageErrorCode, message: string): Buffer {
  const text = Buffer.from(message.slice(0, 2000), 'utf8');
  const b = Buffer.alloc(8 + text.length);
  b.writeUInt32LE(requestId, 0);
  b[4] = pageErrorCodes.indexOf(code);
  text.copy(b, 8);
  return b;
}

// Answers, client side.

export type PageAnswer =
  | {
      readonly kind: 'pages' | 'packedPages';
      readonly requestId: number;
      readonly count: number;
      readonly bytes: Buffer;
      readonly frame: Buffer;
    }
  | {readonly kind: 'relSize'; readonly requestId: number; readonly blocks: number | undefined}
  | {readonly kind: 'relExists'; readonly requestId: number; readonly exists: boolean}
  | {readonly kind: 'dbSize'; readonly requestId: number; readonly bytes: number}
  | {readonly kind: 'lease'; readonly requestId: number; readonly grantedMs: number}
  | {readonly kind: 'listDb'; readonly requestId: number; readonly entries: readonly RelListEntry[]}
  | {readonly kind: 'error'; readonly requestId: number; readonly code: PageErrorCode; readonly message: string};

/** The answer in a frame; page buffers are views of it. Throws PageServiceError 'bad-request' on a malformed frame. */
export function decodePageAnswer(type: number, b: Buffer): PageAnswer {
  if (b.length < 4) throw malformed(type, b);
  const requestId = b.readUInt32LE(0);
  switch (type) {
    case pageFrame.pages: {
      if (b.length < 8) throw malformed(type, b);
      const count = b.readUInt16LE(4);
      if (b.length !== 8 + count * blockSize) throw malformed(type, b);
      return {kind: 'pages', requestId, count, bytes: b.subarray(8), frame: b};
    }
    case pageFrame.packedPages:
      if (b.length < 8) throw malformed(type, b);
      return {kind: 'packedPages', requestId, count: b.readUInt16LE(4), bytes: b.subarray(8), frame: b};
    case pageFrame.relSizeAnswer:
      if (b.length !== 12) throw malformed(type, b);
      return {kind: 'relSize', requestId, blocks: b[4] === 1 ? b.readUInt32LE(8) : undefined};
    case pageFrame.relExistsAnswer:
      if (b.length !== 8) throw malformed(type, b);
      return {kind: 'relExists', requestId, exists: b[4] === 1};
    case pageFrame.dbSizeAnswer:
      if (b.length !== 12) throw malformed(type, b);
      return {kind: 'dbSize', requestId, bytes: readLsn64(b, 4)};
    case pageFrame.leaseAnswer:
      if (b.length !== 12) throw malformed(type, b);
      return {kind: 'lease', requestId, grantedMs: readLsn64(b, 4)};
    case pageFrame.listDbAnswer: {
      if ((b.length - 4) % listEntryBytes !== 0) throw malformed(type, b);
      const entries: RelListEntry[] = [];
      for (let at = 4; at < b.length; at += listEntryBytes) {
        const rel: RelTag = {
          spcNode: b.readUInt32LE(at),
          dbNode: b.readUInt32LE(at + 4),
          relNode: b.readUInt32LE(at + 8),
          fork: b[at + 12]! as ForkNumber,
        };
        entries.push({rel, blocks: b.readUInt32LE(at + 16)});
      }
      return {kind: 'listDb', requestId, entries};
    }
    case pageFrame.error:
      if (b.length < 8) throw malformed(type, b);
      return {kind: 'error', requestId, code: pageErrorCodes[b[4]!] ?? 'internal', message: b.toString('utf8', 8)};
    default:
      throw malformed(type, b);
  }
}

function malformed(type: number, b: Buffer): PageServiceError {
  return new PageServiceError(
    'bad-request',
    `page service: answer of type ${type} with ${b.length} bytes is malformed`,
  );
}

/** Where in history a request reads; notModifiedSinceLsn defaults to requestLsn. */
export interface ReadAt {
  readonly requestLsn: Lsn;
  readonly notModifiedSinceLsn?: Lsn;
}

/** Pages one after the other. After `release`, which need not be called, nobody may look at the bytes. */
export interface PageRun {
  readonly bytes: Buffer;
  /** `bytes` are so many pages as in packed-pages.ts; only who asked for that gets it. */
  readonly packedPages?: number;
  release(): void;
}

interface Waiter {
  readonly resolve: (answer: PageAnswer) => void;
  readonly reject: (error: Error) => void;
  readonly what: string;
}

/**
 * A connection to the page service of one timeline. Requests are pipelined: call again before the first is answered.
 * When the connection ends, every request in flight fails with PageServiceError 'disconnected' and `closed` resolves;
 * connecting anew is the caller's business. It has no timer: a caller that wants a deadline closes the client.
 */
export class PagesClient {
  /** Resolves, never rejects, once the connection has ended, with the reason if there was one. */
  readonly closed: Promise<Error | undefined>;
  readonly #connection: FrameConnection;
  readonly #waiters = new Map<number, Waiter>();
  #nextId = 1;
  #ended: Error | undefined;
  #markClosed: (error: Error | undefined) => void = () => {};

  private constructor(connection: FrameConnection) {
    this.#connection = connection;
    this.closed = new Promise((resolve) => (this.#markClosed = resolve));
  }

  /**
   * Connects and waits for the welcome, no longer than `deadline` takes to resolve. Throws PageServiceError when refused
   * ('not-found' or 'bad-request').
   */
  static async connect(
    address: {readonly host: string; readonly port: number},
    token: string,
    tenantId: string,
    timelineId: string,
    deadline?: Promise<void>,
  ): Promise<PagesClient> {
    const connection = await connectFrames(address);
    let welcome = false;
    void deadline?.then(() => {
      if (!welcome) connection.destroy();
    });
    const client = new PagesClient(connection);
    await new Promise<void>((resolve, reject) => {
      connection.onClose = (error) =>
        reject(
          new PageServiceError(
            'disconnected',
            `page service ${connection.peer} closed before its welcome${reason(error)}`,
          ),
        );
      connection.onFrame = (type, payload) => {
        if (type === pageFrame.welcome) {
          welcome = true;
          return resolve();
        }
        connection.destroy();
        reject(type === pageFrame.refused ? refusal(payload) : malformed(type, payload));
      };
      sendJson(connection, pageFrame.hello, {token, tenantId, timelineId});
    });
    connection.onFrame = (type, payload) => client.#onFrame(type, payload);
    connection.onClose = (error) => client.#end(error);
    return client;
  }

  /**
   * `count` pages (at most 64) from `block` on. Fewer only where the relation ends; 'beyond-end' when `block` itself does
   * not exist. The buffers are views of one received frame.
   */
  async getPages(rel: RelTag, block: number, count: number, at: ReadAt): Promise<Buffer[]> {
    const {bytes} = await this.getPageRun(rel, block, count, at);
    const pages: Buffer[] = [];
    for (let from = 0; from < bytes.length; from += blockSize) pages.push(bytes.subarray(from, from + blockSize));
    return pages;
  }

  /** The same in one piece, for those who pass it on; `packed`: to one who can unpack. */
  async getPageRun(rel: RelTag, block: number, count: number, at: ReadAt, packed = false): Promise<PageRun> {
    const what = `pages ${block}+${count} of ${formatRel(rel)}`;
    const answer = await this.#ask('getPages', rel, block, count, at, what, packed);
    if (answer.kind !== 'pages' && (answer.kind !== 'packedPages' || !packed)) return wrongKind(answer);
    const {bytes, frame} = answer;
    const release = (): void => this.#connection.recycle(frame);
    return answer.kind === 'pages' ? {bytes, release} : {bytes, packedPages: answer.count, release};
  }

  /** Blocks of the fork, or undefined when it does not exist. */
  async relSize(rel: RelTag, at: ReadAt): Promise<number | undefined> {
    const answer = await this.#ask('relSize', rel, 0, 0, at, `size of ${formatRel(rel)}`);
    return answer.kind === 'relSize' ? answer.blocks : wrongKind(answer);
  }

  async relExists(rel: RelTag, at: ReadAt): Promise<boolean> {
    const answer = await this.#ask('relExists', rel, 0, 0, at, `existence of ${formatRel(rel)}`);
    return answer.kind === 'relExists' ? answer.exists : wrongKind(answer);
  }

  /** Bytes of all forks of all relations of the database, in every tablespace. */
  async dbSize(dbNode: number, at: ReadAt): Promise<number> {
    const answer = await this.#ask(
      'dbSize',
      {spcNode: 0, dbNode, relNode: 0, fork: 0},
      0,
      0,
      at,
      `size of database ${dbNode}`,
    );
    return answer.kind === 'dbSize' ? answer.bytes : wrongKind(answer);
  }

  /** Every fork of the database in one tablespace; spcNode 0 means in every tablespace. */
  async listDb(spcNode: number, dbNode: number, at: ReadAt): Promise<RelListEntry[]> {
    const rel: RelTag = {spcNode, dbNode, relNode: 0, fork: 0};
    const answer = await this.#ask('listDb', rel, 0, 0, at, `relations of database ${dbNode}`);
    return answer.kind === 'listDb' ? (answer.entries as RelListEntry[]) : wrongKind(answer);
  }

  /** Keeps history at `lsn` readable for `ttlSeconds`; answers the milliseconds granted. 'lsn-too-old'. */
  async lease(lsn: Lsn, ttlSeconds: number): Promise<number> {
    const rel: RelTag = {spcNode: 0, dbNode: 0, relNode: 0, fork: 0};
    const answer = await this.#ask('lease', rel, ttlSeconds, 0, {requestLsn: lsn}, `lease on ${formatLsn(lsn)}`);
    return answer.kind === 'lease' ? answer.grantedMs : wrongKind(answer);
  }

  /** Requests without an answer yet. */
  get inFlight(): number {
    return this.#waiters.size;
  }

  /** At once: a peer that is silent would never answer an orderly end. */
  destroy(): void {
    this.#connection.destroy();
  }

  close(): void {
    this.#connection.close();
    this.#end(undefined);
  }

  #ask(
    kind: PageRequestKind,
    rel: RelTag,
    blockNumber: number,
    count: number,
    at: ReadAt,
    what: string,
    packed = false,
  ): Promise<PageAnswer> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const requestId = this.#nextId;
    this.#nextId = this.#nextId === 0xffffffff ? 1 : this.#nextId + 1;
    const {spcNode, dbNode, relNode, fork} = rel;
    const {requestLsn} = at;
    const notModifiedSinceLsn = at.notModifiedSinceLsn ?? requestLsn;
    const request = {
      kind,
      requestId,
      requestLsn,
      notModifiedSinceLsn,
      spcNode,
      dbNode,
      relNode,
      fork,
      blockNumber,
      count,
      packed,
    };
    return new Promise((resolve, reject) => {
      this.#waiters.set(requestId, {resolve, reject, what});
      this.#connection.send(pageFrame[kind], encodePageRequest(request));
    });
  }

  #onFrame(type: number, payload: Buffer): void {
    let answer: PageAnswer;
    try {
      answer = decodePageAnswer(type, payload);
    } catch (error) {
      this.#connection.destroy(); // the stream cannot be trusted any more
      this.#end(error as Error);
      return;
    }
    const waiter = this.#waiters.get(answer.requestId);
    if (waiter === undefined) return;
    this.#waiters.delete(answer.requestId);
    if (answer.kind === 'error') waiter.reject(new PageServiceError(answer.code, answer.message));
    else waiter.resolve(answer);
  }

  #end(error: Error | undefined): void {
    if (this.#ended !== undefined) return;
    this.#ended = new PageServiceError(
      'disconnected',
      `page service ${this.#connection.peer} disconnected${reason(error)}`,
    );
    for (const waiter of this.#waiters.values())
      waiter.reject(new PageServiceError('disconnected', `${this.#ended.message}; asked for ${waiter.what}`));
    this.#waiters.clear();
    this.#markClosed(error);
  }
}

function reason(error: Error | undefined): string {
  return error === undefined ? '' : `: ${error.message}`;
}

function refusal(payload: Buffer): PageServiceError {
  let code = 'internal';
  let message = '';
  try {
    const value = parseJsonFrame(payload);
    if (typeof value === 'object' && value !== null) {
      if ('code' in value && typeof value.code === 'string') code = value.code;
      if ('message' in value && typeof value.message === 'string') message = value.message;
    }
  } catch {
    message = 'unreadable reason';
  }
  const known = pageErrorCodes.find((c) => c === code) ?? 'bad-request';
  return new PageServiceError(known, `page service refused the connection (${code}): ${message}`);
}

function wrongKind(answer: PageAnswer): never {
  throw new PageServiceError('internal', `page service answered request ${answer.requestId} with ${answer.kind}`);
}
