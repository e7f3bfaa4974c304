/** What the interpreters of single resource managers are given, and what they answer. */
import type {Lsn} from '#postgres/lsn.ts';
import type {ForkNumber} from '#postgres/relation.ts';
import type {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import type {PagePatchBuilder} from '#pageserver/ingest/page-patch.ts';
import type {RecordData} from '#pageserver/ingest/record-data.ts';
import type {IngestSink, IngestState} from '#pageserver/ingest/sink.ts';

export interface InterpretContext {
  readonly sink: IngestSink;
  readonly state: IngestState;
  readonly checkpoint: CheckpointState;
  /** Reused; empty between patches. */
  readonly patch: PagePatchBuilder;
  /** Opened on the record's main data. */
  readonly data: RecordData;
  /** Size of a fork, ≥ 0 or relationMissing; a fork that is not loaded is noted as missing and answers relationNotLoaded. */
  size(spcNode: number, dbNode: number, relNode: number, forkNumber: ForkNumber): number;
  /** Creates the fork, and the directory of its database in that tablespace if there is none. */
  createRelation(spcNode: number, dbNode: number, relNode: number, forkNumber: ForkNumber, lsn: Lsn): void;
}

/** What a record without blocks does, decided before anything is done. */
export type Effects =
  | {readonly kind: 'effects'; readonly apply: () => 'barrier' | void}
  | {readonly kind: 'problem'; readonly problem: string}
  | {readonly kind: 'nothing'};

export const noEffects: Effects = {kind: 'nothing'};

export function effects(apply: () => 'barrier' | void): Effects {
  return {kind: 'effects', apply};
}

export function problem(text: string): Effects {
  return {kind: 'problem', problem: text};
}
