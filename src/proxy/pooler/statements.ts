/**
 * Prepared statements of clients that share servers: a client's name stands for a text, and a text has one name at every
 * server of the pool. So whichever server a transaction gets, it can be made to know the statement.
 */

/** What a Parse message says behind its name: query and parameter types. */
export interface Statement {
  readonly contents: Buffer;
  /** Its name at servers. */
  readonly serverName: string;
}

/** Servers know our names only; no client's name reaches them. */
export const serverNamePrefix = 'pagoda_';
const statementsMax = 5_000;

/** Texts that are prepared somewhere in a pool. The same text gets the same name, so that servers hold it once. */
export class StatementNames {
  readonly #byContents = new Map<string, Statement>();
  #next = 1;

  of(contents: Buffer): Statement {
    const key = contents.toString('latin1');
    let statement = this.#byContents.get(key);
    if (statement === undefined)
      statement = {contents: Buffer.from(contents), serverName: `${serverNamePrefix}${this.#next++}`};
    else this.#byContents.delete(key);
    this.#byContents.set(key, statement); // now the most recently used
    // Forgetting one costs its next user a name of its own, nothing else.
    if (this.#byContents.size > statementsMax) this.#byContents.delete(this.#byContents.keys().next().value!);
    return statement;
  }
}

/** What a client believes to have. */
export class ClientMemory {
  readonly named = new Map<string, Statement>();
  unnamed: Statement | undefined;
  /** Settings that every link restores at its server (`trackedParameters`), by their name as Postgres reports it. */
  readonly parameters = new Map<string, string>();
}

/** What a server has. */
export class ServerMemory {
  /** By server name, least recently used first. */
  readonly prepared = new Map<string, Statement>();
  unnamed: Statement | undefined;
  /** As reported in ParameterStatus. */
  readonly parameters = new Map<string, string>();
  /** What the session's last transactions left behind that its next user must not see. */
  leftover: 'nothing' | 'settings' | 'statements' = 'nothing';
}

/** Settings a client may give at startup and change; they follow it from server to server (as in PgBouncer). */
export const trackedParameters: ReadonlyMap<string, string> = new Map(
  ['client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings', 'application_name'].map((name) => [
    name.toLowerCase(),
    name,
  ]),
);
