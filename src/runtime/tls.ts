/** TLS for servers: an identity (certificate and key), and turning an accepted socket into a TLS one. */
import {X509Certificate, createHash} from 'node:crypto';
import type {Socket} from 'node:net';
import * as tls from 'node:tls';

export interface TlsIdentity {
  readonly context: tls.SecureContext;
  /**
   * The channel binding `tls-server-end-point` (RFC 5929): the hash of the DER certificate, by the hash of its signature,
   * SHA-256 where that is MD5 or SHA-1.
   */
  readonly endPointHash: Buffer;
  /** Domains of the certificate, without a leading `*.`. */
  readonly domains: readonly string[];
}

/** Throws when certificate and key are damaged or do not belong together. */
export function loadTlsIdentity(certificatePem: string, keyPem: string): TlsIdentity {
  const certificate = new X509Certificate(certificatePem);
  const algorithm =
    /sha(384|512)/i
      .exec(certificate.signatureAlgorithm ?? '')?.[0]
      ?.toLowerCase()
      .replace('-', '') ?? 'sha256';
  const names = (certificate.subjectAltName ?? '')
    .split(',')
    .map((n) => n.trim())
    .filter((n) => n.startsWith('DNS:'))
    .map((n) => n.slice(4).replace(/^\*\./, ''));
  return {
    context: tls.createSecureContext({cert: certificatePem, key: keyPem, minVersion: 'TLSv1.2'}),
    endPointHash: createHash(algorithm).update(certificate.raw).digest(),
    domains: [...new Set(names)],
  };
}

export interface TlsPeer {
  readonly socket: Socket;
  /** The name the client asked for (SNI), if it did. */
  readonly serverName: string | undefined;
  /** What both agreed to speak inside (ALPN); undefined when the client offered nothing. */
  readonly alpnProtocol: string | undefined;
}

/**
 * The server side of a handshake on `socket`; `first` is what was read of it already. Rejects when the handshake fails or the
 * socket closes; deadlines are the caller's.
 */
export function acceptTls(socket: Socket, identity: TlsIdentity, first?: Buffer): Promise<TlsPeer> {
  if (first !== undefined && first.length > 0) socket.unshift(first);
  return new Promise((resolve, reject) => {
    const secure = new tls.TLSSocket(socket, {
      isServer: true,
      secureContext: identity.context,
      // An unknown protocol is refused; none is fine (libpq before 17 sends none).
      ALPNProtocols: ['postgresql', 'http/1.1'],
    });
    secure.once('secure', () =>
      resolve({
        socket: secure,
        serverName: serverNameOf(secure),
        alpnProtocol: secure.alpnProtocol === false ? undefined : (secure.alpnProtocol ?? undefined),
      }),
    );
    secure.once('error', reject);
    secure.once('close', () => reject(new Error('the client left during the TLS handshake')));
  });
}

function serverNameOf(socket: tls.TLSSocket): string | undefined {
  const name = (socket as tls.TLSSocket & {servername?: string | false | null}).servername;
  return typeof name === 'string' && name !== '' ? name : undefined;
}
