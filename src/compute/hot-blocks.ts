/**
 * What was in the buffers when Postgres stopped is what it will want when it wakes. PostgreSQL's own autoprewarm (contrib
 * pg_prewarm, part of every packaged server) writes that list at a clean stop and reads the blocks in the background after a
 * start, through the extension like any other reader. Here the list is carried from one life of the data directory to the
 * next. It is a hint: blocks that are gone are passed over, and without a list nothing is prewarmed.
 *
 * The format is autoprewarm's: a line `<<N>>`, then N lines `database,tablespace,filenode,fork,block`.
 */
import type {ForkNumber} from '#postgres/relation.ts';
import {type Disk, joinPath, replaceFile} from '#runtime/disk.ts';
import type {HotBlock} from '#compute/warm-source.ts';

/** 64 MiB: about half a second of reading that nobody waits for, but that has the pageserver busy. */
export const hotBlocksMax = 8192;
const listName = 'autoprewarm.blocks';

/** Settings that have Postgres keep the list; none where the server came without pg_prewarm. */
export function hotBlockSettings(disk: Disk, binDir: string): {library?: string; settings: Record<string, string>} {
  if (!disk.exists(joinPath(binDir, '..', 'lib', 'pg_prewarm.so'))) return {settings: {}};
  // Interval 0: the list is written at a clean stop only.
  return {
    library: 'pg_prewarm',
    settings: {'pg_prewarm.autoprewarm': 'on', 'pg_prewarm.autoprewarm_interval': '0'},
  };
}

/** After a clean stop: keeps the list. */
export function keepHotBlocks(disk: Disk, pgdata: string, keptFile: string): void {
  const path = joinPath(pgdata, listName);
  if (disk.exists(path)) replaceFile(disk, keptFile, disk.readFile(path));
}

/** Before a start: gives the list to Postgres, cut to `hotBlocksMax` blocks. Answers which. A damaged list is passed over. */
export function restoreHotBlocks(disk: Disk, pgdata: string, keptFile: string): readonly HotBlock[] {
  if (!disk.exists(keptFile)) return [];
  const blocks = readHotBlocks(disk.readFile(keptFile).toString('latin1'));
  if (blocks.length === 0) return [];
  replaceFile(disk, joinPath(pgdata, listName), Buffer.from(`<<${blocks.length}>>\n${blocks.join('\n')}\n`));
  return parseHotBlocks(blocks);
}

/** Lines of the list as places. */
export function parseHotBlocks(lines: readonly string[]): HotBlock[] {
  return lines.map((line) => {
    const [dbNode, spcNode, relNode, fork, block] = line.split(',').map(Number);
    return {
      rel: {spcNode: spcNode!, dbNode: dbNode!, relNode: relNode!, fork: Math.min(fork!, 3) as ForkNumber},
      block: block!,
    };
  });
}

/** Of a longer list every n-th block stays: its order is that of the buffers, which says nothing of how hot one is. */
export function readHotBlocks(text: string, blocksMax = hotBlocksMax): string[] {
  const blocks = text.split('\n').filter((line) => /^\d+,\d+,\d+,\d+,\d+$/.test(line));
  if (blocks.length <= blocksMax) return blocks;
  return Array.from({length: blocksMax}, (_, i) => blocks[Math.floor((i * blocks.length) / blocksMax)]!);
}
