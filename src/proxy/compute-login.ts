/** Logs in at a compute with the keys a client's login gave, and reads up to the first ReadyForQuery. */
import {type Socket, connectSocket} from '#runtime/net.ts';
import type {Random} from '#runtime/random.ts';
import {ByteReader} from '#proxy/byte-reader.ts';
import type {ComputeAddress} from '#proxy/control-client.ts';
import {decodeErrorFields, encodeMessage, encodeStartup} from '#proxy/messages.ts';
import {ScramClient, type ScramKeys, scramPlain} from '#proxy/scram.ts';

/** The compute did not answer at all: it may be gone, and a new one has another address. */
export class ComputeUnreachable extends Error {}

/** The compute answered with an error of its own; `response` is the whole ErrorResponse message for the client. */
export class ComputeRefused extends Error {
  readonly sqlState: string;
  readonly response: Buffer;
  constructor(sqlState: string, message: string, response: Buffer) {
    super(message);
    this.sqlState = sqlState;
    this.response = response;
  }
}

export interface ComputeSession {
  readonly socket: Socket;
  /** ParameterStatus and notices, as they came, to be passed on. */
  readonly greeting: Buffer;
  /** What the compute wants in a CancelRequest (process id and secret). */
  readonly cancelKey: Buffer;
  /** ReadyForQuery and whatever followed it. */
  readonly rest: Buffer;
}

const messageBytesMax = 1024 * 1024;

/** Throws ComputeUnreachable or ComputeRefused. `deadline` ends a login that hangs. */
export async function loginAtCompute(options: {
  address: ComputeAddress;
  parameters: ReadonlyMap<string, string>;
  keys: ScramKeys;
  random: Random;
  deadline: Promise<never>;
}): Promise<ComputeSession> {
  const socket = connectSocket(options.address);
  socket.setNoDelay(true);
  const reader = new ByteReader(socket);
  try {
    return await Promise.race([dialogue(socket, reader, options), options.deadline]);
  } catch (error) {
    socket.on('error', () => {});
    socket.destroy();
    if (error instanceof ComputeRefused) throw error;
    throw new ComputeUnreachable((error as Error).message, {cause: error});
  }
}

async function dialogue(
  socket: Socket,
  reader: ByteReader,
  options: {parameters: ReadonlyMap<string, string>; keys: ScramKeys; random: Random},
): Promise<ComputeSession> {
  const scram = new ScramClient(options.keys, options.random);
  socket.write(encodeStartup(options.parameters));
  const greeting: Buffer[] = [];
  let cancelKey: Buffer = Buffer.alloc(8);
  for (;;) {
    const {type, body} = await reader.readMessage(messageBytesMax);
    if (type === 'E') {
      const fields = decodeErrorFields(body);
      throw new ComputeRefused(
        fields.get('C') ?? 'XX000',
        fields.get('M') ?? 'unknown error',
        encodeMessage('E', body),
      );
    } else if (type === 'R') answerAuthentication(socket, scram, body);
    else if (type === 'K') cancelKey = Buffer.from(body);
    else if (type === 'S' || type === 'N') greeting.push(encodeMessage(type, body));
    else if (type === 'Z') {
      const rest = Buffer.concat([encodeMessage('Z', body), reader.release()]);
      return {socket, greeting: Buffer.concat(greeting), cancelKey, rest};
    } else throw new Error(`the compute sent an unexpected message ${JSON.stringify(type)} before it was ready`);
  }
}

function answerAuthentication(socket: Socket, scram: ScramClient, body: Buffer): void {
  const kind = body.readUInt32BE(0);
  if (kind === 0) return;
  if (kind === 10) {
    if (!body.subarray(4).toString('latin1').split('\0').includes(scramPlain))
      throw new Error('the compute does not offer SCRAM-SHA-256');
    const first = Buffer.from(scram.first());
    const length = Buffer.alloc(4);
    length.writeUInt32BE(first.length, 0);
    socket.write(encodeMessage('p', Buffer.from(`${scramPlain}\0`), length, first));
  } else if (kind === 11) socket.write(encodeMessage('p', Buffer.from(scram.final(body.toString('utf8', 4)))));
  else if (kind === 12) {
    if (!scram.verify(body.toString('utf8', 4))) throw new Error('the compute did not prove that it knows the role');
  } else throw new Error(`the compute asks for authentication of kind ${kind}`);
}
