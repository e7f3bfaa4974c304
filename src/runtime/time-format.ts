/** Times as people and JSON write them. */

/** Milliseconds since 1970 → RFC 3339 in UTC, with milliseconds. */
export function formatTime(timeMs: number): string {
  return new Date(timeMs).toISOString();
}

/** RFC 3339 → milliseconds since 1970; undefined when it is no time. */
export function parseTime(text: string): number | undefined {
  if (!/^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}/.test(text)) return undefined;
  const timeMs = Date.parse(text);
  return Number.isNaN(timeMs) ? undefined : timeMs;
}

/** For libraries that want a Date. */
export function dateAt(timeMs: number): Date {
  return new Date(timeMs);
}
