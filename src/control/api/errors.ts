/** Every error API v2 answers, in Neon's form {code, message}. The messages are read by people and, here and there, by clients. */

export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const apiErrors = {
  badRequest: (message: string) => new ApiError(400, 'BAD_REQUEST', message),
  unauthorized: () =>
    new ApiError(
      401,
      'UNAUTHORIZED',
      'an API key is needed (Authorization: Bearer …), and this one is unknown, revoked or missing',
    ),
  forbidden: (message: string) => new ApiError(403, 'FORBIDDEN', message),
  notFound: (what: string, id: string) => new ApiError(404, 'NOT_FOUND', `${what} ${id} not found`),
  /** This very text makes the neon CLI go on without the feature (neon-api.md §1.2). */
  noRoute: () => new ApiError(404, '', 'this route does not exist'),
  passwordNotStored: (role: string) =>
    new ApiError(412, 'PASSWORD_NOT_STORED', `the password of role ${role} is not stored; reset it to get a new one`),
  /** Scripts look for the words "already exists". */
  conflict: (message: string) => new ApiError(409, 'CONFLICT', message),
  unprocessable: (message: string) => new ApiError(422, 'UNPROCESSABLE', message),
  /** Clients wait and try again on 423. */
  locked: (action: string) =>
    new ApiError(423, 'LOCKED', `another operation runs here (${action}); try again when it has finished`),
  tooLarge: () => new ApiError(413, 'TOO_LARGE', 'the request body is too large'),
  internal: (requestId: string) =>
    new ApiError(500, 'INTERNAL', `internal error; the log of the control plane has it under request ${requestId}`),
  /** The proxy knows this one by its code. */
  endpointDisabled: (id: string) => new ApiError(422, 'endpoint_disabled', `endpoint ${id} is disabled`),
  notReady: (message: string) => new ApiError(503, 'NOT_READY', message),
} as const;
