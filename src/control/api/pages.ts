/** Pages of lists: a cursor is the sort key of the last item, so that items may come and go in between. */
import {apiErrors} from '#control/api/errors.ts';

export interface Page<T> {
  readonly items: readonly T[];
  /** Absent on the last page. */
  readonly next?: string;
}

type SortKey = readonly [string | number, string];

/** Sorts by `key` (second part: the id, so that keys are unique), and cuts the page behind the cursor. */
export function cutPage<T>(
  all: readonly T[],
  options: {key: (item: T) => SortKey; descending?: boolean; limit: number; cursor: string | undefined},
): Page<T> {
  const direction = options.descending ? -1 : 1;
  const compare = (a: SortKey, b: SortKey): number =>
    direction * (compareParts(a[0], b[0]) || compareParts(a[1], b[1]));
  const after = options.cursor === undefined ? undefined : parseCursor(options.cursor);
  const rest = all
    .toSorted((a, b) => compare(options.key(a), options.key(b)))
    .filter((item) => after === undefined || compare(options.key(item), after) > 0);
  const items = rest.slice(0, options.limit);
  const last = items.at(-1);
  return rest.length > items.length && last !== undefined
    ? {items, next: Buffer.from(JSON.stringify(options.key(last))).toString('base64url')}
    : {items};
}

function compareParts(a: string | number, b: string | number): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function parseCursor(text: string): SortKey {
  try {
    const value: unknown = JSON.parse(Buffer.from(text, 'base64url').toString('utf8'));
    if (
      Array.isArray(value) &&
      value.length === 2 &&
      (typeof value[0] === 'string' || typeof value[0] === 'number') &&
      typeof value[1] === 'string'
    )
      return [value[0], value[1]];
  } catch {
    // The same answer as for a well-formed cursor of the wrong content.
  }
  throw apiErrors.badRequest('the cursor is not one of ours');
}
