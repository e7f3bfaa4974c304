/** A new endpoint as a row: everything that does not differ between the ways in which endpoints are made. */
import type {EndpointTable} from '#control/store/schema.ts';

type Given = Pick<EndpointTable, 'id' | 'project_id' | 'branch_id' | 'type'>;

export function newEndpoint(given: Given & Partial<EndpointTable>, nowMs: number): EndpointTable {
  return {
    name: null,
    autoscaling_limit_min_cu: 0.25,
    autoscaling_limit_max_cu: 0.25,
    suspend_timeout_seconds: 0,
    settings: '{}',
    pooler_enabled: 0,
    disabled: 0,
    current_state: 'init',
    pending_state: 'active',
    static_lsn: null,
    active_ms: 0,
    last_active: null,
    started_at: null,
    suspended_at: null,
    created_at: nowMs,
    updated_at: nowMs,
    deleted_at: null,
    ...given,
  };
}
