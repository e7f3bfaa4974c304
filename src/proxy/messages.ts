/** The few messages of the Postgres protocol (version 3.0, protocol.sgml) that the proxy reads or writes itself. */

export const startupBytesMax = 10_000;
/** Of a message before authentication is over. */
export const messageBytesMax = 64 * 1024;

export const protocolCode = {ssl: 80877103, gss: 80877104, cancel: 80877102, v3: 196608} as const;

export type StartupPacket =
  | {readonly kind: 'ssl'}
  | {readonly kind: 'gss'}
  | {readonly kind: 'cancel'; readonly key: Buffer}
  | {readonly kind: 'startup'; readonly minor: number; readonly parameters: ReadonlyMap<string, string>}
  | {readonly kind: 'malformed'; readonly why: string};

/** One startup packet without its length word. */
export function decodeStartup(body: Buffer): StartupPacket {
  if (body.length < 4) return {kind: 'malformed', why: `startup packet of ${body.length + 4} bytes`};
  const code = body.readUInt32BE(0);
  if (code === protocolCode.ssl) return {kind: 'ssl'};
  if (code === protocolCode.gss) return {kind: 'gss'};
  if (code === protocolCode.cancel)
    return body.length === 12
      ? {kind: 'cancel', key: body.subarray(4, 12)}
      : {kind: 'malformed', why: `cancel request of ${body.length} bytes`};
  if (code >>> 16 !== 3)
    return {kind: 'malformed', why: `protocol version ${code >>> 16}.${code & 0xffff} is not spoken here; 3.0 is`};
  const parameters = new Map<string, string>();
  let at = 4;
  for (;;) {
    const end = body.indexOf(0, at);
    if (end < 0) return {kind: 'malformed', why: 'startup packet without its final zero'};
    if (end === at) {
      if (end !== body.length - 1) return {kind: 'malformed', why: 'bytes after the end of the startup packet'};
      return {kind: 'startup', minor: code & 0xffff, parameters};
    }
    const valueEnd = body.indexOf(0, end + 1);
    if (valueEnd < 0) return {kind: 'malformed', why: 'startup parameter without a value'};
    if (parameters.size >= 100) return {kind: 'malformed', why: 'more than 100 startup parameters'};
    const name = decodeUtf8(body.subarray(at, end));
    const value = decodeUtf8(body.subarray(end + 1, valueEnd));
    if (name === undefined || value === undefined)
      return {kind: 'malformed', why: 'startup parameter that is not UTF-8'};
    parameters.set(name, value);
    at = valueEnd + 1;
  }
}

function decodeUtf8(bytes: Buffer): string | undefined {
  const text = bytes.toString('utf8');
  return Buffer.byteLength(text) === bytes.length && !text.includes('\ufffd') ? text : undefined;
}

export function encodeStartup(parameters: Iterable<readonly [string, string]>): Buffer {
  const parts: Buffer[] = [];
  for (const [name, value] of parameters) parts.push(Buffer.from(`${name}\0${value}\0`));
  const body = Buffer.concat([...parts, Buffer.alloc(1)]);
  const head = Buffer.alloc(8);
  head.writeUInt32BE(body.length + 8, 0);
  head.writeUInt32BE(protocolCode.v3, 4);
  return Buffer.concat([head, body]);
}

export function encodeCancel(key: Buffer): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt32BE(16, 0);
  head.writeUInt32BE(protocolCode.cancel, 4);
  return Buffer.concat([head, key]);
}

export function encodeMessage(type: string, ...parts: readonly Buffer[]): Buffer {
  let length = 4;
  for (const part of parts) length += part.length;
  const head = Buffer.alloc(5);
  head.write(type, 0, 'latin1');
  head.writeUInt32BE(length, 1);
  return Buffer.concat([head, ...parts]);
}

function uint32(value: number): Buffer {
  const b = Buffer.alloc(4);
  b.writeUInt32BE(value, 0);
  return b;
}

export const authentication = {
  ok: (): Buffer => encodeMessage('R', uint32(0)),
  cleartext: (): Buffer => encodeMessage('R', uint32(3)),
  sasl: (mechanisms: readonly string[]): Buffer =>
    encodeMessage('R', uint32(10), Buffer.from(`${mechanisms.join('\0')}\0\0`)),
  saslContinue: (data: string): Buffer => encodeMessage('R', uint32(11), Buffer.from(data)),
  saslFinal: (data: string): Buffer => encodeMessage('R', uint32(12), Buffer.from(data)),
};

export function encodeBackendKey(key: Buffer): Buffer {
  return encodeMessage('K', key);
}

export function encodeErrorResponse(severity: string, sqlState: string, message: string, hint?: string): Buffer {
  const fields = [
    `S${severity}`,
    `V${severity}`,
    `C${sqlState}`,
    `M${message}`,
    ...(hint === undefined ? [] : [`H${hint}`]),
  ];
  return encodeMessage('E', Buffer.from(`${fields.join('\0')}\0\0`));
}

/** Tells a client that asks for 3.1 or later, or for `_pq_.` options, what it gets (NegotiateProtocolVersion). */
export function encodeNegotiateProtocol(unknownOptions: readonly string[]): Buffer {
  return encodeMessage(
    'v',
    uint32(0),
    uint32(unknownOptions.length),
    ...unknownOptions.map((o) => Buffer.from(`${o}\0`)),
  );
}

/** Name and value in the body of a ParameterStatus. */
export function decodeParameterStatus(body: Buffer): [name: string, value: string] {
  const end = body.indexOf(0);
  return [body.toString('utf8', 0, end), body.toString('utf8', end + 1, body.length - 1)];
}

/** Fields of an ErrorResponse or NoticeResponse body by their one-letter code. */
export function decodeErrorFields(body: Buffer): Map<string, string> {
  const fields = new Map<string, string>();
  for (const part of body.toString('utf8').split('\0')) if (part !== '') fields.set(part[0]!, part.slice(1));
  return fields;
}
