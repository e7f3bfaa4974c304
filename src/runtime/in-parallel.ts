/** `work` for each of `items`, begun in their order, at most `atOnce` at a time. Rejects when one does; the others go on. */
export async function inParallel<T>(
  items: readonly T[],
  atOnce: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const waiting = items.values();
  await Promise.all(
    Array.from({length: Math.min(atOnce, items.length)}, async () => {
      for (const item of waiting) await work(item);
    }),
  );
}
