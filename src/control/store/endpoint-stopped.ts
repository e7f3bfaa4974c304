/** The columns of an endpoint whose compute has ended: what it ran counts. One that did not run has run for nobody. */
import {type ExpressionBuilder, type RawBuilder, sql} from 'kysely';
import type {Tables} from '#control/store/schema.ts';

export function stopped(nowMs: number): (e: ExpressionBuilder<Tables, 'endpoints'>) => {
  readonly current_state: 'idle';
  readonly suspended_at: number;
  readonly updated_at: number;
  readonly active_ms: RawBuilder<number>;
} {
  return (e) => ({
    current_state: 'idle',
    suspended_at: nowMs,
    updated_at: nowMs,
    active_ms: sql<number>`active_ms + case when ${e.ref('current_state')} = 'active' then ${nowMs} - coalesce(${e.ref('started_at')}, ${nowMs}) else 0 end`,
  });
}
