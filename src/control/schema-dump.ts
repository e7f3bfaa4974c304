/** The schema of a database as SQL text: PostgreSQL's own pg_dump, asked as the database's owner. */
import {joinPath} from '#runtime/disk.ts';
import {spawnProcess} from '#runtime/process.ts';

export interface SchemaTarget {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly database: string;
}

/** Rejects with pg_dump's last words. */
export type DumpSchema = (target: SchemaTarget) => Promise<string>;

/**
 * Not as superuser: what pg_dump looks at belongs to customers, and some of it may be made to run
 * (CVE-2024-7348).
 */
export function schemaDumper(options: {readonly binDir: string; readonly systemUser: string}): DumpSchema {
  return async ({host, port, user, password, database}) => {
    const lines: string[] = [];
    const complaints: string[] = [];
    const child = await spawnProcess({
      command: joinPath(options.binDir, 'pg_dump'),
      args: ['--schema-only', '--no-password', '--lock-wait-timeout=10s'],
      cwd: '/',
      user: options.systemUser,
      env: {
        PGHOST: host,
        PGPORT: String(port),
        PGUSER: user,
        PGPASSWORD: password,
        PGDATABASE: database,
        PGOPTIONS: undefined,
        PGSSLMODE: undefined,
        PGHOSTADDR: undefined,
        PGSERVICE: undefined,
      },
      onStdoutLine: (line) => void lines.push(line),
      onStderrLine: (line) => void complaints.push(line),
    });
    const {code, signal} = await child.exited;
    if (code !== 0) throw new Error(`pg_dump ended with ${signal ?? code}: ${complaints.slice(-3).join('; ')}`);
    return withoutRestrict(lines).join('\n') + '\n';
  };
}

/** `\restrict TOKEN` … `\unrestrict TOKEN` are for psql and differ in every dump: equal schemas would differ. */
export function withoutRestrict(lines: readonly string[]): string[] {
  const token = lines.map((line) => /^\\restrict (\w+)$/.exec(line)?.[1]).find((found) => found !== undefined);
  if (token === undefined) return [...lines];
  return lines.filter((line) => line !== `\\restrict ${token}` && line !== `\\unrestrict ${token}`);
}
