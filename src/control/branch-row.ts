/** A new branch as a row: everything that does not differ between the ways in which branches are made. */
import type {BranchTable} from '#control/store/schema.ts';

type Given = Pick<BranchTable, 'id' | 'project_id' | 'name' | 'timeline_id' | 'parent_id' | 'safekeepers'>;

export function newBranch(given: Given & Partial<BranchTable>, nowMs: number): BranchTable {
  return {
    parent_lsn: null,
    parent_timestamp: null,
    state: 'init',
    pending_state: 'ready',
    is_default: 0,
    protected: 0,
    init_source: 'parent-data',
    hidden: 0,
    creation_source: 'console',
    catalog_version: 0,
    catalog_applied: 0,
    catalog_applied_lsn: null,
    expires_at: null,
    last_reset_at: null,
    backup_schedule: null,
    restored_from: null,
    restore_target: null,
    restore_status: null,
    created_at: nowMs,
    updated_at: nowMs,
    state_changed_at: nowMs,
    deleted_at: null,
    purge_at: null,
    deletion_method: null,
    ...given,
  };
}
