/** One SQL session at a compute, for requests that come by HTTP: extended protocol, everything as text. */
import {ByteReader} from '#proxy/byte-reader.ts';
import type {ComputeSession} from '#proxy/compute-login.ts';
import {decodeErrorFields, encodeMessage} from '#proxy/messages.ts';

export interface SqlField {
  readonly name: string;
  readonly tableID: number;
  readonly columnID: number;
  readonly dataTypeID: number;
  readonly dataTypeSize: number;
  readonly dataTypeModifier: number;
  readonly format: 'text';
}

export interface SqlResult {
  readonly fields: readonly SqlField[];
  readonly rows: readonly (readonly (string | null)[])[];
  readonly command: string;
  readonly rowCount: number | null;
}

/** An ErrorResponse; `fields` by their letter. The session can go on after it. */
export class SqlError extends Error {
  readonly fields: ReadonlyMap<string, string>;
  constructor(fields: ReadonlyMap<string, string>) {
    super(fields.get('M') ?? 'unknown error');
    this.fields = fields;
  }
}

/** The answer grew above its limit; the session cannot be used any more. */
export class ResultTooLarge extends Error {}

const messageBytesMax = 1 << 30;

export class SqlSession {
  readonly #session: ComputeSession;
  readonly #reader: ByteReader;
  #broken = false;
  #resting = false;

  constructor(session: ComputeSession) {
    this.#session = session;
    this.#reader = new ByteReader(session.socket);
    session.socket.once('close', () => (this.#broken = true));
  }

  get usable(): boolean {
    return !this.#broken && this.#reader.waiting === 0;
  }

  /**
   * Nobody uses it until the next query. A compute that is suspended meanwhile says so and closes; a paused socket would
   * tell only the next user. Whatever arrives unasked ends the session.
   */
  rest(): void {
    this.#resting = true;
    const end = (): void => {
      if (this.#resting) this.close();
    };
    this.#reader.peek().then(end, end);
  }

  /** Throws SqlError (usable again), ResultTooLarge or a connection error (not usable). */
  async query(text: string, parameters: readonly (string | null)[], bytesMax: number): Promise<SqlResult> {
    this.#resting = false;
    this.#session.socket.write(
      Buffer.concat([
        encodeMessage('P', Buffer.from('\0'), cString(text), uint16(0)),
        encodeMessage('B', Buffer.from('\0\0'), uint16(0), encodeParameters(parameters), uint16(0)),
        encodeMessage('D', Buffer.from('P\0')),
        encodeMessage('E', Buffer.from('\0'), Buffer.alloc(4)),
        encodeMessage('S'),
      ]),
    );
    let fields: SqlField[] = [];
    const rows: (string | null)[][] = [];
    let tag = '';
    let error: SqlError | undefined;
    let bytes = 0;
    try {
      for (;;) {
        const {type, body} = await this.#reader.readMessage(messageBytesMax);
        bytes += body.length;
        if (bytes > bytesMax) throw new ResultTooLarge(`the answer is larger than ${bytesMax} bytes`);
        if (type === 'T') fields = decodeFields(body);
        else if (type === 'D') rows.push(decodeRow(body));
        else if (type === 'C') tag = body.toString('utf8', 0, body.length - 1);
        else if (type === 'E') error ??= new SqlError(decodeErrorFields(body));
        else if (type === 'G')
          this.#session.socket.write(encodeMessage('f', cString('COPY is not possible over HTTP')));
        else if (type === 'Z') break;
      }
    } catch (failure) {
      this.close();
      // Its last words say more than that it is gone.
      throw failure instanceof ResultTooLarge ? failure : (error ?? failure);
    }
    if (error !== undefined) throw error;
    return {fields, rows, ...decodeTag(tag)};
  }

  close(): void {
    this.#broken = true;
    this.#session.socket.on('error', () => {});
    this.#session.socket.end(encodeMessage('X'));
    this.#session.socket.destroySoon();
  }
}

function cString(text: string): Buffer {
  return Buffer.from(`${text.replaceAll('\0', '')}\0`);
}

function uint16(value: number): Buffer {
  const b = Buffer.alloc(2);
  b.writeUInt16BE(value, 0);
  return b;
}

function encodeParameters(parameters: readonly (string | null)[]): Buffer {
  const parts: Buffer[] = [uint16(parameters.length)];
  for (const value of parameters) {
    const length = Buffer.alloc(4);
    if (value === null) length.writeInt32BE(-1, 0);
    else length.writeInt32BE(Buffer.byteLength(value), 0);
    parts.push(length);
    if (value !== null) parts.push(Buffer.from(value));
  }
  return Buffer.concat(parts);
}

function decodeFields(body: Buffer): SqlField[] {
  const fields: SqlField[] = [];
  let at = 2;
  for (let i = body.readUInt16BE(0); i > 0; i--) {
    const end = body.indexOf(0, at);
    fields.push({
      name: body.toString('utf8', at, end),
      tableID: body.readUInt32BE(end + 1),
      columnID: body.readUInt16BE(end + 5),
      dataTypeID: body.readUInt32BE(end + 7),
      dataTypeSize: body.readInt16BE(end + 11),
      dataTypeModifier: body.readInt32BE(end + 13),
      format: 'text',
    });
    at = end + 19;
  }
  return fields;
}

function decodeRow(body: Buffer): (string | null)[] {
  const row: (string | null)[] = [];
  let at = 2;
  for (let i = body.readUInt16BE(0); i > 0; i--) {
    const length = body.readInt32BE(at);
    at += 4;
    if (length < 0) row.push(null);
    else {
      row.push(body.toString('utf8', at, at + length));
      at += length;
    }
  }
  return row;
}

/** `INSERT 0 5` → INSERT, 5; `SELECT 3` → SELECT, 3; `CREATE TABLE` → CREATE, null. */
function decodeTag(tag: string): {command: string; rowCount: number | null} {
  const words = tag.split(' ');
  const count = words[0] === 'INSERT' ? words[2] : words[1];
  return {command: words[0] ?? '', rowCount: count !== undefined && /^\d+$/.test(count) ? Number(count) : null};
}
