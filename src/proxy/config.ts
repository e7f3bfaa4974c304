export interface ProxyConfig {
  readonly host: string;
  /** Postgres clients; one port for all of them. */
  readonly port: number;
  readonly keysDir: string;
  /** Internal base URL of the control plane, for example http://127.0.0.1:54339. */
  readonly controlUrl: string;
  /** PEM files of the certificate and its key. */
  readonly certificateFile: string;
  readonly privateKeyFile: string;
  /** Names end in one of these: `ep-x.DOMAIN`. Default: the domains of the certificate. */
  readonly domains?: readonly string[];
  /** `remote`: clients on this machine may speak without TLS. Default `remote`. */
  readonly requireTls?: 'always' | 'remote';
}
