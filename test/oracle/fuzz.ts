/** Hostile input made of real input: real records and pages with a few bytes changed. */
import {SeededRandom} from '#runtime/random.ts';
import {WalDecodeError, WalRecord, decodeRecord} from '#postgres/wal/record.ts';
import {applyRecord} from '#redo/apply.ts';
import {pageSize} from '#redo/bufpage.ts';
import {RedoError} from '#redo/redo.ts';

const values = [0, 1, 0x7f, 0x80, 0xff];

export class Fuzzer {
  readonly outcome = {refused: 0, taken: 0, escaped: 0};
  readonly #random = new SeededRandom(1);
  readonly #page = Buffer.alloc(pageSize);
  readonly #record = new WalRecord();

  /** Damages copies and applies them. Answers what escaped, or undefined when all was well. */
  attack(record: WalRecord, blockId: number, page: Buffer): string | undefined {
    page.copy(this.#page);
    const bytes = Buffer.from(record.whole());
    const mode = this.#below(3);
    // headers, block data and main data; not images, which would be most of it
    if (mode !== 0) {
      const changes = 1 + this.#below(3);
      for (let i = 0; i < changes; i++) this.#damage(bytes, ...this.#place(record, blockId));
    }
    if (mode !== 1) {
      const changes = 1 + this.#below(4);
      for (let i = 0; i < changes; i++) {
        const anywhere = this.#below(3) === 0;
        this.#damage(
          this.#page,
          anywhere ? 8 : this.#below(2) === 0 ? 10 : pageSize - 24,
          anywhere ? pageSize : this.#below(2) === 0 ? 100 : pageSize,
        );
      }
    }
    try {
      decodeRecord(bytes, record.startLsn, record.endLsn, this.#record);
    } catch (error) {
      if (!(error instanceof WalDecodeError)) return this.#escaped(error);
      return undefined;
    }
    try {
      applyRecord(this.#page, this.#record, blockId, {walLogHints: false});
      this.outcome.taken++;
    } catch (error) {
      // a wrapped exception of another kind is a check that is missing
      const cause = error instanceof RedoError ? error.cause : error;
      if (!(error instanceof RedoError) || (!(cause instanceof RedoError) && !(cause instanceof WalDecodeError)))
        return this.#escaped(cause);
      this.outcome.refused++;
    }
    return undefined;
  }

  #escaped(error: unknown): string {
    this.outcome.escaped++;
    return String(error instanceof Error ? error.stack : error).slice(0, 400);
  }

  #place(record: WalRecord, blockId: number): [number, number] {
    const block = record.block(blockId)!;
    const choice = this.#below(3);
    const main = record.mainDataOffset - record.offset;
    if (choice === 0 && record.mainDataLength > 0) return [main, main + record.mainDataLength];
    const data = block.dataOffset - record.offset;
    if (choice === 1 && block.dataLength > 0) return [data, data + block.dataLength];
    return [16, record.blocks[0]!.inUse ? record.blocks[0]!.imageOffset - record.offset : record.totalLength];
  }

  #damage(bytes: Buffer, from: number, to: number): void {
    if (to <= from) return;
    const at = from + this.#below(Math.min(to, bytes.length) - from);
    bytes[at] = this.#below(2) === 0 ? values[this.#below(values.length)]! : bytes[at]! ^ (1 << this.#below(8));
  }

  #below(n: number): number {
    return n <= 0 ? 0 : this.#random.uint32() % n;
  }
}
