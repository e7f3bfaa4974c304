/** The content of `pagoda compute --config FILE`. */
import type {ComputeSpec} from '#wire/compute-spec.ts';

export interface ComputeConfig {
  readonly spec: ComputeSpec;
  /** The agent's own directory; wiped at start: everything in it is a cache. */
  readonly dataDir: string;
  /** System user Postgres runs as when the agent is started by root. */
  readonly systemUser: string;
  /** Of PostgreSQL, for example /usr/lib/postgresql/15/bin. */
  readonly binDir: string;
  /** The extension's shared library, readable by systemUser. */
  readonly extensionLibrary: string;
  /** Postgres listens here, on loopback; 0 picks a free port. */
  readonly pgPort: number;
  /** The agent's HTTP; 0 picks a free port. */
  readonly httpPort: number;
  /** Bearer token that the agent's HTTP asks for. */
  readonly httpToken: string;
  /** How `pagoda proposer` is run; the cli fills it in. */
  readonly proposerCommand: {readonly command: string; readonly args: readonly string[]};
}
