/** Which branches storage has: those that live, those that can still be recovered, and those that are about to go. */
import type {ExpressionBuilder, ExpressionWrapper, SqlBool} from 'kysely';
import type {BranchTable, Store, StoreTransaction, Tables} from '#control/store/schema.ts';

export function inStorage(e: ExpressionBuilder<Tables, 'branches'>): ExpressionWrapper<Tables, 'branches', SqlBool> {
  return e.or([e('branches.deleted_at', 'is', null), e('branches.purge_at', 'is not', null)]);
}

export function isInStorage({deleted_at, purge_at}: Pick<BranchTable, 'deleted_at' | 'purge_at'>): boolean {
  return deleted_at === null || purge_at !== null;
}

/** Branches whose timelines begin on this one's: storage cannot let the parent go before them. */
export function childrenInStorage(store: Store | StoreTransaction, branchId: string): Promise<BranchTable[]> {
  return store.selectFrom('branches').selectAll().where('parent_id', '=', branchId).where(inStorage).execute();
}
