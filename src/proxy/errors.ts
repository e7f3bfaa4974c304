/** Everything the proxy says by itself, with the SQLSTATE a driver acts on. Sent as FATAL before the session starts. */
import {encodeErrorResponse} from '#proxy/messages.ts';

export class ProxyError extends Error {
  readonly sqlState: string;
  readonly hint: string | undefined;
  constructor(sqlState: string, message: string, hint?: string) {
    super(message);
    this.sqlState = sqlState;
    this.hint = hint;
  }

  encode(): Buffer {
    return encodeErrorResponse('FATAL', this.sqlState, this.message, this.hint);
  }
}

export const proxyErrors = {
  protocol: (what: string) => new ProxyError('08P01', `protocol violation: ${what}`),
  insecure: () =>
    new ProxyError(
      '28000',
      'connection is insecure: this server asks for TLS',
      'Use sslmode=require in the connection string.',
    ),
  noEndpoint: () =>
    new ProxyError(
      '08004',
      'the endpoint is not named',
      'Give its id as the first label of the host name (TLS with SNI), or as a parameter: ?options=endpoint%3D<endpoint-id>',
    ),
  twoEndpoints: (a: string, b: string) =>
    new ProxyError('08004', `the host name says endpoint ${a}, the options say ${b}`),
  badEndpoint: (id: string) =>
    new ProxyError('08004', `endpoint id ${JSON.stringify(id)} may hold only letters, digits and "-"`),
  pointInTime: (why: string) =>
    new ProxyError(
      '22023',
      `there is no such point in the past: ${why}`,
      'Give an LSN or a time within the history of the branch: options=neon_lsn:<LSN> or neon_timestamp:<RFC 3339>',
    ),
  unknownEndpoint: (id: string) =>
    new ProxyError(
      '08004',
      `endpoint ${id} does not exist`,
      'See `neon branches list` and the connection string of the branch.',
    ),
  wrongPassword: (user: string) => new ProxyError('28P01', `password authentication failed for user "${user}"`),
  throttled: () => new ProxyError('53300', 'too many failed attempts from this address; try again in a minute'),
  timeout: () => new ProxyError('08006', 'authentication timed out'),
  wake: (id: string, why: string) =>
    new ProxyError('57P03', `endpoint ${id} could not be started: ${why}`, 'Try again; `pagoda logs` has the reason.'),
  disabled: (id: string) => new ProxyError('57P03', `endpoint ${id} is disabled`),
  ipRefused: (ip: string) =>
    new ProxyError('28000', `the address ${ip} is not in this project's list of allowed addresses`),
  unreachable: (id: string) =>
    new ProxyError('57P03', `the compute of endpoint ${id} does not answer`, 'It is being started anew; try again.'),
  notPooled: (parameter: string) =>
    new ProxyError(
      '08P01',
      `unsupported startup parameter: ${parameter}`,
      'Pooled connections take client_encoding, DateStyle, TimeZone, standard_conforming_strings and application_name; for others connect without -pooler in the host name.',
    ),
  poolBusy: (seconds: number) =>
    new ProxyError(
      '53300',
      `no server of the pool came free within ${seconds} s`,
      'Shorten transactions, or try again.',
    ),
  pool: (why: string) => new ProxyError('08006', `no connection to the compute: ${why}`),
  control: () =>
    new ProxyError(
      '57P03',
      'the control plane cannot be reached, so this connection cannot be checked',
      'Try again; `pagoda status` shows what is down.',
    ),
} as const;
