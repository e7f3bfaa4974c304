/**
 * One timeline's records, one after the other: interpreter → write path. What the driver of ingest (receive.ts) does with
 * WAL once it is decoded.
 */
import type {WalRecord} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {Interpreter} from '#pageserver/ingest/interpret.ts';
import type {RelTag} from '#postgres/relation.ts';
import type {Timeline} from '#pageserver/timeline/timeline.ts';
import {TimelineError} from '#pageserver/timeline/timeline-reader.ts';
import type {TimelineWriter} from '#pageserver/timeline/write-path.ts';

/** Does what needs the object store, again and again if need be. Each piece of work may be repeated. */
export type Patiently = (work: () => Promise<void>) => Promise<void>;

export class RecordIngest {
  readonly #timeline: Timeline;
  readonly #writer: TimelineWriter;
  readonly #interpreter: Interpreter;
  readonly #patiently: Patiently;

  private constructor(timeline: Timeline, writer: TimelineWriter, checkpoint: CheckpointState, patiently: Patiently) {
    this.#timeline = timeline;
    this.#writer = writer;
    this.#interpreter = new Interpreter(writer, writer, checkpoint);
    this.#patiently = patiently;
    writer.walLogHints = checkpoint.walLogHints;
  }

  /** As of the timeline's last record; its ancestor must have reached the branch point. */
  static async load(timeline: Timeline, patiently: Patiently = (work) => work()): Promise<RecordIngest> {
    const writer = await timeline.writer();
    const stored = await timeline.checkpointState(timeline.lastRecordLsn);
    if (stored === undefined)
      throw new TimelineError(
        'not-found',
        `${timeline.state.name}: the timeline has no checkpoint state; was it imported?`,
      );
    return new RecordIngest(timeline, writer, CheckpointState.decode(stored), patiently);
  }

  /**
   * Takes the record that follows the last one. Undefined: it is in. A promise: it will be, and the record must stay as it is
   * meanwhile. Throws what stops the timeline: IngestError, or what `patiently` throws.
   */
  take(record: WalRecord): Promise<void> | undefined {
    const outcome = this.#interpreter.interpret(record);
    if (outcome.kind === 'error') throw outcome.error;
    if (outcome.kind === 'missing') return this.#takeSlowly(record, [...outcome.relations]);
    if (this.#writer.hasUnfinishedWork || !this.#timeline.hasRoom) return this.#takeSlowly(record, undefined);
    this.#finish(record);
    return undefined;
  }

  async #takeSlowly(record: WalRecord, missing: readonly RelTag[] | undefined): Promise<void> {
    const timeline = this.#timeline;
    const writer = this.#writer;
    for (let load = missing; load !== undefined;) {
      const relations = load;
      await this.#patiently(() => writer.loadRelations(relations));
      const outcome = this.#interpreter.interpret(record);
      if (outcome.kind === 'error') throw outcome.error;
      load = outcome.kind === 'missing' ? [...outcome.relations] : undefined;
    }
    if (writer.hasUnfinishedWork)
      await this.#patiently(() => writer.finishRecord(record.endLsn, () => timeline.waitForRoom()));
    this.#finish(record);
    await timeline.waitForRoom();
  }

  #finish(record: WalRecord): void {
    // Parameters of the writing cluster change in records of this resource manager only.
    if (record.rmid === rmgr.xlog) this.#writer.walLogHints = this.#interpreter.checkpoint.walLogHints;
    this.#timeline.state.lastRecordStartLsn = record.startLsn;
    this.#writer.endRecord(record.endLsn);
  }
}
