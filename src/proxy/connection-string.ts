/** The connection string that an HTTP request carries in its header. */
export interface ConnectionTarget {
  readonly user: string;
  readonly password: string;
  readonly database: string;
  readonly host: string;
  readonly options: string | undefined;
  readonly applicationName: string | undefined;
}

/** Throws an Error that says what is wrong with it, without its password. */
export function parseConnectionString(text: string): ConnectionTarget {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new Error('invalid connection string: it is not a URL');
  }
  if (url.protocol !== 'postgres:' && url.protocol !== 'postgresql:')
    throw new Error(`invalid connection string: its scheme is ${url.protocol.slice(0, -1)}, not postgresql`);
  const decode = (part: string, what: string): string => {
    try {
      return decodeURIComponent(part);
    } catch {
      throw new Error(`invalid connection string: malformed percent-encoding in the ${what}`);
    }
  };
  const user = decode(url.username, 'user name');
  const password = decode(url.password, 'password');
  const database = decode(url.pathname.slice(1), 'database name');
  if (url.hostname === '') throw new Error('invalid connection string: the host name is missing');
  if (user === '') throw new Error('invalid connection string: the user name is missing');
  if (password === '') throw new Error('invalid connection string: the password is missing');
  if (database === '') throw new Error('invalid connection string: the database name is missing');
  return {
    user,
    password,
    database,
    host: url.hostname,
    options: url.searchParams.get('options') ?? undefined,
    applicationName: url.searchParams.get('application_name') ?? undefined,
  };
}
