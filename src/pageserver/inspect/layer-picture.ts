/**
 * A picture of a branch's layers: keys from left to right, history from bottom to top, each layer the rectangle of what it
 * holds. Positions are ranks, not distances: what lies where is to be seen, not how large it is. Pure.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {LayerDescription} from '../timeline/index-object.ts';

export interface PictureInput {
  readonly name: string;
  readonly layers: readonly LayerDescription[];
  readonly gcCutoffLsn: Lsn;
  readonly lastRecordLsn: Lsn;
  /** LSNs that children or leases hold, with what holds them. */
  readonly held: readonly {readonly lsn: Lsn; readonly what: string}[];
}

const width = 1100;
const left = 150;
const top = 40;
const rowHeightMin = 6;
const rowHeightMax = 26;
const plotHeight = 620;
const colours = ['#d9822b', '#2b7bba', '#2a9d8f', '#6d597a', '#495057'] as const;
const imageColour = '#b5179e';

export function layerPicture(input: PictureInput): string {
  const {layers} = input;
  const keys = [...new Set(layers.flatMap(({firstKey, lastKey}) => [firstKey, `${lastKey}+`]))].sort();
  const lsns = [
    ...new Set<number>([
      ...layers.flatMap(({startLsn, endLsn}) => [startLsn, endLsn]),
      input.gcCutoffLsn,
      input.lastRecordLsn,
      ...input.held.map(({lsn}) => lsn),
    ]),
  ].sort((x, y) => x - y);
  const keyRank = new Map(keys.map((key, i) => [key, i]));
  const lsnRank = new Map(lsns.map((lsn, i) => [lsn, i]));
  const rowHeight = Math.min(rowHeightMax, Math.max(rowHeightMin, plotHeight / Math.max(1, lsns.length)));
  const height = top + rowHeight * lsns.length + 60;
  const x = (key: string): number =>
    left + ((keyRank.get(key) ?? 0) / Math.max(1, keys.length - 1)) * (width - left - 20);
  const y = (lsn: number): number => top + rowHeight * (lsns.length - (lsnRank.get(lsn) ?? 0));
  const out: string[] = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${Math.round(height)}" font-family="sans-serif" font-size="11">`,
    `<rect width="100%" height="100%" fill="#fff"/>`,
    `<text x="${left}" y="20" font-size="14">${escape(input.name)}: ${layers.length} layers, ${megabytes(layers.reduce((n, l) => n + l.size, 0))}</text>`,
  ];
  // Images lie on one LSN: drawn last, as bars.
  for (const layer of layers.toSorted((a, b) =>
    a.kind === b.kind ? a.startLsn - b.startLsn : a.kind === 'delta' ? -1 : 1,
  )) {
    const from = x(layer.firstKey);
    const w = Math.max(2, x(`${layer.lastKey}+`) - from);
    const image = layer.kind === 'image';
    const bottom = y(layer.startLsn);
    const h = image ? 4 : Math.max(2, bottom - y(layer.endLsn));
    const colour = image ? imageColour : colours[Math.min(layer.level, colours.length - 1)]!;
    const title = `${layer.kind} level ${layer.level}${layer.complete ? ', complete' : ''}, ${megabytes(layer.size)}, ${layer.versions} versions, ${formatLsn(layer.startLsn)} to ${formatLsn(layer.endLsn)}, generation ${layer.generation}`;
    out.push(
      `<rect x="${from.toFixed(1)}" y="${(image ? bottom - 2 : bottom - h).toFixed(1)}" width="${w.toFixed(1)}" height="${h.toFixed(1)}" fill="${colour}" fill-opacity="${image ? 1 : 0.45}" stroke="${colour}"><title>${escape(title)}</title></rect>`,
    );
  }
  const line = (lsn: number, label: string, colour: string): void => {
    const at = y(lsn).toFixed(1);
    out.push(
      `<line x1="${left - 6}" x2="${width - 20}" y1="${at}" y2="${at}" stroke="${colour}" stroke-dasharray="4 3"/>`,
      `<text x="4" y="${at}" fill="${colour}">${escape(label)}</text>`,
    );
  };
  line(input.lastRecordLsn, `now ${formatLsn(input.lastRecordLsn)}`, '#222');
  line(input.gcCutoffLsn, `kept from ${formatLsn(input.gcCutoffLsn)}`, '#c1121f');
  for (const {lsn, what} of input.held) line(lsn, what, '#386641');
  const legend = [
    ['image', imageColour] as const,
    ...colours.map((c, i) => [`level ${i}${i === colours.length - 1 ? '+' : ''}`, c] as const),
  ];
  legend.forEach(([name, colour], i) => {
    const at = left + i * 110;
    out.push(
      `<rect x="${at}" y="${height - 24}" width="12" height="12" fill="${colour}"/><text x="${at + 18}" y="${height - 14}">${name}</text>`,
    );
  });
  out.push('</svg>');
  return `${out.join('\n')}\n`;
}

function megabytes(bytes: number): string {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}
