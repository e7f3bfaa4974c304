export interface ProxyConfig {
  readonly host: string;
  /** Postgres clients; one port for all of them. */
  readonly port: number;
  readonly keysDir: string;
  /** Where the certificate of a first start is made and kept. */
  readonly dataDir: string;
  /** Internal base URL of the control plane, for example http://127.0.0.1:54339. */
  readonly controlUrl: string;
  /** Endpoints are reached as `ENDPOINT.DOMAIN`. */
  readonly domain: string;
  /** PEM files of a certificate and its key; without them a self-signed one is made. Both or none. */
  readonly certificateFile?: string;
  readonly privateKeyFile?: string;
  /** `remote`: clients on this machine may speak without TLS. Default `remote`. */
  readonly requireTls?: 'always' | 'remote';
}
