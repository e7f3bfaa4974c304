export interface BrokerConfig {
  readonly host: string;
  /** 0 = any free port. */
  readonly port: number;
  readonly keysDir: string;
}
