/**
 * A plan is how one kind of operation is carried out: steps in a fixed order.
 *
 * A step first does its `effect` on the outside world (storage, computes), then `record`s what follows from it in the database,
 * in the same transaction that moves the operation to its next step. A crash may repeat an effect, never a record; so:
 *
 *  1. An effect done twice is an effect done once (ids are chosen before the first step).
 *  2. What an effect learned and a later step needs, it returns: it is kept in the operation's state.
 *  3. Every plan converges from every step: to done, or, where `failuresMax` says so, to undone by `onFailed`.
 */
import type {OperationDraft} from '#control/operations/runner.ts';
import type {OperationTable, StoreTransaction} from '#control/store/schema.ts';

/** JSON, kept with the operation. */
export type OperationState = Readonly<Record<string, unknown>>;

export interface StepContext {
  readonly operation: Readonly<OperationTable>;
  readonly state: OperationState;
}

export interface Step {
  readonly name: string;
  /** Answers what to add to the state. */
  effect?(context: StepContext): Promise<OperationState | undefined>;
  record?(trx: StoreTransaction, context: StepContext & {readonly nowMs: number}): Promise<void>;
  /** Operations of their own that follow from it, submitted in the same transaction. */
  follow?(state: OperationState): readonly OperationDraft[];
}

export interface Plan {
  readonly kind: string;
  readonly steps: readonly Step[];
  /** Failures before the operation is given up; absent: it goes on trying for ever. */
  readonly failuresMax?: number;
  /** Undoes what a given-up operation has shown to users, in the transaction that marks it failed. */
  onFailed?(
    trx: StoreTransaction,
    context: StepContext & {readonly nowMs: number; readonly error: string},
  ): Promise<void>;
  /** What is to be done about what a given-up operation may have left in storage; submitted in the same transaction. */
  cleanUp?(operation: Readonly<OperationTable>): readonly OperationDraft[];
}

/** Trying again cannot help: the operation fails at once. The message is for the user. */
export class PermanentError extends Error {}

/** There is nothing to do any more (its endpoint is gone): the operation ends as `skipped`. */
export class SkippedError extends Error {}

const retryMsMin = 200;
const retryMsMax = 15_000;

/** Pause before the next try after so many failures. */
export function retryDelayMs(failures: number): number {
  return Math.min(retryMsMin * 2 ** Math.max(0, failures - 1), retryMsMax);
}
