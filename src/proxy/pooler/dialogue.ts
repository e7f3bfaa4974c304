/**
 * The dialogue of one client with the server it is linked to, from the first message of a transaction to the server's word
 * that the transaction is over. Pure: messages in, bytes out.
 *
 * It keeps account of every answer that is due. Most are passed on; some are swallowed, because we asked (a statement this
 * server did not know yet); some are ours to give, because the server need not be asked. After an error the server skips
 * everything up to the next Sync (protocol-flow.sgml, extended query), and so does the account.
 */
import {decodeParameterStatus, encodeMessage} from '#proxy/messages.ts';
import {
  type ClientMemory,
  type ServerMemory,
  type Statement,
  type StatementNames,
  serverNamePrefix,
  trackedParameters,
} from '#proxy/pooler/statements.ts';

/** Types a client sends whose contents matter here; all others are passed on in pieces. */
export const wantedFromClient = 'PBDECSHXcf';
/** The same of a server. */
export const wantedFromServer = '123nTIsCEZSGKA';

interface Due {
  /** `query`: a simple query or function call, over with ReadyForQuery. `given`: not the server's to answer. */
  readonly kind: 'query' | 'sync' | 'parse' | 'bind' | 'describe' | 'execute' | 'close' | 'given';
  /** The answer is for us, not for the client. */
  readonly ours?: true;
  /** Of `given`. */
  readonly bytes?: Buffer;
  /** The server has this statement once it has answered. */
  readonly prepares?: Statement;
  /** The client's name of a statement, from here on. */
  readonly names?: readonly [string, Statement];
  /** Takes back what was noted when it was sent: the server refused it, or never looked at it because of an earlier error. */
  readonly undo?: (outcome: 'refused' | 'skipped') => void;
}

const preparedPerServerMax = 500;
const askingName = `${serverNamePrefix}0`;
const parseComplete = encodeMessage('1');
const closeComplete = encodeMessage('3');

export class Dialogue {
  readonly #client: ClientMemory;
  readonly #server: ServerMemory;
  readonly #names: StatementNames;
  readonly #toClient: (bytes: Buffer) => void;
  readonly #toServer: (bytes: Buffer) => void;
  readonly #due: Due[] = [];
  /** Messages of the extended protocol went out since the last Sync. */
  #open = false;
  /** After an error: the server ignores everything before the next Sync, and that has not come yet. */
  #skipping = false;
  #copyIn = false;
  #status = 'I';

  constructor(options: {
    client: ClientMemory;
    server: ServerMemory;
    names: StatementNames;
    toClient: (bytes: Buffer) => void;
    toServer: (bytes: Buffer) => void;
  }) {
    this.#client = options.client;
    this.#server = options.server;
    this.#names = options.names;
    this.#toClient = options.toClient;
    this.#toServer = options.toServer;
    this.#restoreParameters();
  }

  /** The server may go to another client: nothing is due and no transaction is open. */
  get finished(): boolean {
    return this.#due.length === 0 && !this.#open && !this.#skipping && this.#status === 'I';
  }

  /** A whole message of the client, of a type in `wantedFromClient` (Terminate excepted: that ends the link). */
  fromClient(type: string, message: Buffer, body: Buffer): void {
    if (type === 'c' || type === 'f') {
      this.#copyDataComes();
      this.#toServer(message);
    } else if (type === 'S') {
      this.#open = false;
      this.#skipping = false;
      this.#due.push({kind: 'sync'});
      this.#toServer(message);
    } else if (this.#skipping) return;
    else if (type === 'H') this.#toServer(message);
    else {
      this.#open = true;
      if (type === 'P') this.#parse(message, body);
      else if (type === 'B') this.#bind(message, body);
      else if (type === 'D') this.#describe(message, body);
      else if (type === 'C') this.#close(message, body);
      else {
        this.#due.push({kind: 'execute'});
        this.#toServer(message);
      }
    }
    this.#give();
  }

  /** A part of another message of the client. */
  pieceFromClient(type: string, bytes: Buffer, first: boolean): void {
    if (first && (type === 'Q' || type === 'F') && !this.#skipping) {
      // A simple query also destroys the unnamed statement (exec_simple_query: drop_unnamed_stmt).
      this.#due.push({kind: 'query', undo: type === 'Q' ? this.#setUnnamed(undefined) : () => {}});
    } else if (first && type === 'd') this.#copyDataComes();
    this.#toServer(bytes);
  }

  /** A whole message of the server, of a type in `wantedFromServer`. */
  fromServer(type: string, message: Buffer, body: Buffer): void {
    const head = this.#due[0];
    const ours = head?.ours === true;
    if (type === 'S') this.#reported(body);
    if (type === 'C') this.#leaves(body);
    if (type === 'G') this.#copyIn = true;
    else if (type === 'C' || type === 'E') this.#copyIn = false;
    // An error is always the client's to see: a statement that cannot be prepared again is its statement.
    if (!(ours && (type === '1' || type === '3' || head.kind === 'query'))) this.#toClient(message);
    if (type === 'Z') {
      this.#status = body.toString('latin1', 0, 1);
      this.#due.shift();
    } else if (type === 'E') this.#failed();
    else if (head !== undefined && answers(type, head.kind)) this.#due.shift();
    this.#give();
  }

  /** A part of another message of the server. */
  pieceFromServer(bytes: Buffer): void {
    const head = this.#due[0];
    if (!(head?.kind === 'query' && head.ours)) this.#toClient(bytes);
  }

  #parse(message: Buffer, body: Buffer): void {
    const {client, server} = {client: this.#client, server: this.#server};
    const end = nameEnd(body, 0);
    const name = body.toString('latin1', 0, end);
    const contents = body.subarray(end + 1);
    if (name === '') {
      this.#due.push({kind: 'parse', undo: this.#setUnnamed(this.#names.of(contents))});
      this.#toServer(message);
      return;
    }
    const taken = client.named.get(name);
    if (taken !== undefined && this.#status === 'E' && !server.prepared.has(taken.serverName)) {
      // Refused in any case; here for the transaction's sake.
      this.#ask(Buffer.from('select\0\0\0'), () => {});
      return;
    }
    if (taken !== undefined) {
      // The server says what Postgres says of a name that is taken: at it, this name is.
      this.#ensure(taken);
      this.#due.push({kind: 'parse'});
      this.#toServer(encodeParse(taken.serverName, contents));
      return;
    }
    const statement = this.#names.of(contents);
    client.named.set(name, statement);
    const undo = (): void => void client.named.delete(name);
    const names = [name, statement] as const;
    if (!server.prepared.has(statement.serverName)) this.#prepare(statement, {names}, undo);
    else if (this.#status !== 'E') this.#due.push({kind: 'given', bytes: parseComplete, names, undo});
    else this.#ask(contents, undo);
  }

  /** In a failed transaction only the server knows what may still be parsed: it is asked under a name for the purpose. */
  #ask(contents: Buffer, undo: () => void): void {
    this.#due.push({kind: 'parse', undo}, {kind: 'close', ours: true});
    this.#toServer(encodeParse(askingName, contents));
    this.#toServer(encodeMessage('C', Buffer.from(`S${askingName}\0`)));
  }

  #bind(message: Buffer, body: Buffer): void {
    const portalEnd = nameEnd(body, 0);
    const end = nameEnd(body, portalEnd + 1);
    const name = body.toString('latin1', portalEnd + 1, end);
    const serverName = this.#serverName(name);
    this.#due.push({kind: 'bind'});
    this.#toServer(
      serverName === undefined
        ? message
        : encodeMessage('B', body.subarray(0, portalEnd + 1), Buffer.from(serverName), body.subarray(end)),
    );
  }

  #describe(message: Buffer, body: Buffer): void {
    const serverName =
      body[0] === 0x53 /* S */ ? this.#serverName(body.toString('latin1', 1, nameEnd(body, 1))) : undefined;
    this.#due.push({kind: 'describe'});
    this.#toServer(serverName === undefined ? message : encodeMessage('D', Buffer.from(`S${serverName}\0`)));
  }

  #close(message: Buffer, body: Buffer): void {
    const name = body.toString('latin1', 1, nameEnd(body, 1));
    if (body[0] === 0x53 /* S */ && name !== '') {
      // The server keeps it: other clients may have the same.
      const {named} = this.#client;
      const statement = named.get(name);
      named.delete(name);
      const undo = (): void => void (statement && named.set(name, statement));
      this.#due.push({kind: 'given', bytes: closeComplete, undo});
      return;
    }
    this.#due.push({kind: 'close', undo: body[0] === 0x53 ? this.#setUnnamed(undefined) : () => {}});
    this.#toServer(message);
  }

  /**
   * Makes the server know the statement that the client means, and says under which name. Undefined: as the client wrote it,
   * for the server to refuse (or for the unnamed one, which has the same name everywhere).
   */
  #serverName(name: string): string | undefined {
    if (name !== '') {
      const statement = this.#client.named.get(name);
      // For the server to refuse. The name of another client's statement must not work by guessing: a space makes it no name of ours.
      if (statement === undefined) return name.startsWith(serverNamePrefix) ? ` ${name}` : undefined;
      this.#ensure(statement);
      return statement.serverName;
    }
    const wanted = this.#client.unnamed;
    if (wanted === this.#server.unnamed) return undefined;
    const undo = this.#setUnnamed(wanted);
    this.#due.push({kind: wanted === undefined ? 'close' : 'parse', ours: true, undo});
    this.#toServer(wanted === undefined ? encodeMessage('C', Buffer.from('S\0')) : encodeParse('', wanted.contents));
    return undefined;
  }

  /** The unnamed statement is this one now, for both. Gives what takes that back. */
  #setUnnamed(statement: Statement | undefined): NonNullable<Due['undo']> {
    const before = [this.#client.unnamed, this.#server.unnamed] as const;
    this.#client.unnamed = this.#server.unnamed = statement;
    return (outcome) => {
      // A Parse that fails has destroyed the one before (exec_parse_message).
      [this.#client.unnamed, this.#server.unnamed] = outcome === 'skipped' ? before : [undefined, undefined];
    };
  }

  #ensure(statement: Statement): void {
    const {prepared} = this.#server;
    if (prepared.delete(statement.serverName)) prepared.set(statement.serverName, statement);
    else this.#prepare(statement, {ours: true}, () => {});
  }

  #prepare(statement: Statement, due: Pick<Due, 'ours' | 'names'>, undo: () => void): void {
    const {prepared} = this.#server;
    prepared.set(statement.serverName, statement);
    const undoAll = (): void => {
      prepared.delete(statement.serverName);
      undo();
    };
    this.#due.push({kind: 'parse', ...due, prepares: statement, undo: undoAll});
    this.#toServer(encodeParse(statement.serverName, statement.contents));
    if (prepared.size <= preparedPerServerMax) return;
    const [oldest] = prepared.keys();
    prepared.delete(oldest!);
    this.#due.push({kind: 'close', ours: true});
    this.#toServer(encodeMessage('C', Buffer.from(`S${oldest}\0`)));
  }

  /**
   * The server reads copy data now. A Sync that was sent before it is ignored there (copyfromparse.c, CopyGetData), and the
   * client sends another one at the end.
   */
  #copyDataComes(): void {
    if (!this.#copyIn) return;
    for (let i = this.#due.length - 1; i >= 0; i--) {
      if (this.#due[i]!.kind !== 'sync') continue;
      this.#due.splice(i, 1);
      this.#open = true;
    }
  }

  /** The server answers nothing more before the next Sync; of a simple query it still says that it is ready. */
  #failed(): void {
    if (this.#due[0]?.kind === 'query') return;
    const sync = this.#due.findIndex((due) => due.kind === 'sync');
    const skipped = this.#due.splice(0, sync < 0 ? this.#due.length : sync);
    for (let i = skipped.length - 1; i >= 0; i--) skipped[i]!.undo?.(i === 0 ? 'refused' : 'skipped');
    if (this.#due.length === 0) this.#skipping = true;
  }

  #give(): void {
    for (let due = this.#due[0]; due?.kind === 'given'; due = this.#due[0]) {
      this.#toClient(due.bytes!);
      this.#due.shift();
    }
  }

  /** ParameterStatus: the server has it; and the client, unless we set it on its behalf. */
  #reported(body: Buffer): void {
    const [name, value] = decodeParameterStatus(body);
    this.#server.parameters.set(name, value);
    const head = this.#due[0];
    if (trackedParameters.has(name.toLowerCase()) && !(head?.kind === 'query' && head.ours))
      this.#client.parameters.set(name, value);
  }

  /** CommandComplete: what stays behind in the session, as far as its tag tells. */
  #leaves(body: Buffer): void {
    const tag = body.toString('latin1', 0, body.length - 1);
    const head = this.#due[0];
    if (head?.kind === 'query' && head.ours) return;
    if (tag === 'DISCARD ALL' || tag === 'DEALLOCATE ALL') {
      this.#server.prepared.clear();
      this.#client.named.clear();
      // What was sent behind it is still to come.
      for (const {prepares, names} of this.#due) {
        if (prepares !== undefined) this.#server.prepared.set(prepares.serverName, prepares);
        if (names !== undefined) this.#client.named.set(...names);
      }
    } else if (tag === 'PREPARE') this.#server.leftover = 'statements';
    else if (/^(SET|RESET|LISTEN|DECLARE CURSOR|LOAD)$/.test(tag) && this.#server.leftover === 'nothing')
      this.#server.leftover = 'settings';
  }

  /** Settings that the client has and this server has not. */
  #restoreParameters(): void {
    const wrong = [...this.#client.parameters].filter(([name, value]) => this.#server.parameters.get(name) !== value);
    if (wrong.length === 0) return;
    this.#due.push({kind: 'query', ours: true});
    this.#toServer(encodeMessage('Q', Buffer.from(`${setStatements(wrong)}\0`)));
  }
}

/** Is a message of this type the (last) answer to a request of this kind? */
function answers(type: string, kind: Due['kind']): boolean {
  switch (kind) {
    case 'parse':
      return type === '1';
    case 'bind':
      return type === '2';
    case 'close':
      return type === '3';
    case 'describe':
      return type === 'n' || type === 'T';
    case 'execute':
      return type === 'C' || type === 'I' || type === 's';
    default:
      return false;
  }
}

function nameEnd(body: Buffer, from: number): number {
  const end = body.indexOf(0, from);
  if (end < 0) throw new Error('a name without its end');
  return end;
}

function encodeParse(name: string, contents: Buffer): Buffer {
  return encodeMessage('P', Buffer.from(`${name}\0`), contents);
}

/** A string literal that is right whatever standard_conforming_strings is. */
function quoted(value: string): string {
  const escaped = value.replaceAll("'", "''");
  return escaped.includes('\\') ? `e'${escaped.replaceAll('\\', '\\\\')}'` : `'${escaped}'`;
}

/** SQL that sets all of these. */
export function setStatements(settings: Iterable<readonly [string, string]>): string {
  return [...settings].map(([name, value]) => `set ${name} = ${quoted(value)}`).join('; ');
}
