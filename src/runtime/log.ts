/** One line per entry on standard error: time, level, component, message, fields as key=value. Secrets never go in. */
import {openSync, writeSync} from 'node:fs';

export interface Log {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** The same log with more fields on every line (tenant, timeline, …). */
  with(fields: LogFields): Log;
}

export type LogFields = Readonly<Record<string, unknown>>;
export type LogLevel = 'debug' | 'info' | 'warn' | 'error';

const order: Record<LogLevel, number> = {debug: 0, info: 1, warn: 2, error: 3};

let logFile: number | undefined;

/** From now on every log of this process goes to this file, at its end. For a process that was started before it knew its task. */
export function logToFile(path: string): void {
  logFile = openSync(path, 'a', 0o600);
}

export function createLog(options: {component: string; level?: LogLevel; fields?: LogFields}): Log {
  const level = options.level ?? (process.env['PAGODA_LOG'] as LogLevel | undefined) ?? 'info';
  const lowest = order[level] ?? 1;
  const write = (at: LogLevel, message: string, fields?: LogFields): void => {
    if (order[at] < lowest) return;
    let line = `${new Date().toISOString()} ${at.toUpperCase().padEnd(5)} ${options.component}: ${message}`;
    for (const [key, value] of Object.entries({...options.fields, ...fields}))
      if (value !== undefined) line += ` ${key}=${format(value)}`;
    if (logFile === undefined) process.stderr.write(line + '\n');
    else writeSync(logFile, line + '\n');
  };
  return {
    debug: (m, f) => write('debug', m, f),
    info: (m, f) => write('info', m, f),
    warn: (m, f) => write('warn', m, f),
    error: (m, f) => write('error', m, f),
    with: (fields) => createLog({...options, fields: {...options.fields, ...fields}}),
  };
}

function format(value: unknown): string {
  const text = typeof value === 'string' ? value : value instanceof Error ? value.message : JSON.stringify(value);
  return /^[\w./:+-]*$/.test(text ?? '') ? text : JSON.stringify(text);
}

/** Says nothing; for tests. */
export const silentLog: Log = {debug() {}, info() {}, warn() {}, error() {}, with: () => silentLog};
