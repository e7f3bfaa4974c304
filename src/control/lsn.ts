/** WAL positions as the control plane sees them: it stores, compares and passes them on, and never computes with WAL. */

declare const lsnBrand: unique symbol;
/** Byte position in a branch's WAL; safe as a number to 2^53. */
export type Lsn = number & {readonly [lsnBrand]: true};

/** `16/B374D848`; undefined when it is not of that form. */
export function parseLsn(text: string): Lsn | undefined {
  const match = /^([0-9a-fA-F]{1,8})\/([0-9a-fA-F]{1,8})$/.exec(text);
  if (!match) return undefined;
  const lsn = parseInt(match[1]!, 16) * 0x1_0000_0000 + parseInt(match[2]!, 16);
  return Number.isSafeInteger(lsn) ? (lsn as Lsn) : undefined;
}

export function formatLsn(lsn: Lsn): string {
  return `${Math.floor(lsn / 0x1_0000_0000)
    .toString(16)
    .toUpperCase()}/${(lsn % 0x1_0000_0000).toString(16).toUpperCase()}`;
}

const pageBytes = 8192;
const segmentBytes = 16 * 1024 * 1024;
const pageHeaderBytes = 24;
const segmentHeaderBytes = 40;

/**
 * The greatest position at or below `lsn` where a record may start: people choose any LSN, WAL continues only at a multiple
 * of 8 outside page headers (a page's first byte stands for "right after its header").
 */
export function alignDown(lsn: Lsn): Lsn {
  const aligned = lsn - (lsn % 8);
  const header = aligned % segmentBytes < pageBytes ? segmentHeaderBytes : pageHeaderBytes;
  const inPage = aligned % pageBytes;
  return (inPage < header ? aligned - inPage : aligned) as Lsn;
}
