import {parseMembers} from '#wire/membership.ts';
import type {Member} from '#wire/safekeeper.ts';

export interface ProposerConfig {
  readonly tenantId: string;
  readonly timelineId: string;
  /** pg_control's system identifier, decimal; empty = not known. */
  readonly systemId: string;
  /** PG_VERSION_NUM, or a bare major. */
  readonly pgVersion: number;
  readonly safekeepers: readonly Member[];
  /** While the safekeepers are being changed: those that will be; both sets are needed (wire/membership.ts). */
  readonly newSafekeepers?: readonly Member[];
  /** Membership generation the list belongs to; default 1. A higher one that a safekeeper names is adopted. */
  readonly generation?: number;
  /** For the safekeepers (scope tenant). A newer one may be given while running. */
  readonly token: string;
}

/** Throws an Error that names the field. */
export function parseProposerConfig(value: unknown): ProposerConfig {
  const c = (value ?? {}) as Record<string, unknown>;
  const text = (name: string): string => {
    const v = c[name];
    if (typeof v !== 'string') throw new Error(`proposer config: ${name} must be a string`);
    return v;
  };
  const whole = (v: unknown, name: string): number => {
    if (typeof v !== 'number' || !Number.isSafeInteger(v) || v < 0)
      throw new Error(`proposer config: ${name} must be a whole number`);
    return v;
  };
  if (!Array.isArray(c['safekeepers']) || c['safekeepers'].length === 0)
    throw new Error('proposer config: safekeepers must be a list of {nodeId, host, port}');
  const members = (name: string): Member[] => {
    try {
      return parseMembers(c[name], name);
    } catch (error) {
      throw new Error(`proposer config: ${(error as Error).message}`, {cause: error});
    }
  };
  const pgVersion = whole(c['pgVersion'], 'pgVersion');
  return {
    tenantId: text('tenantId'),
    timelineId: text('timelineId'),
    systemId: text('systemId'),
    pgVersion: pgVersion < 10_000 ? pgVersion * 10_000 : pgVersion,
    safekeepers: members('safekeepers'),
    ...(c['newSafekeepers'] === undefined ? {} : {newSafekeepers: members('newSafekeepers')}),
    ...(c['generation'] === undefined ? {} : {generation: whole(c['generation'], 'generation')}),
    token: text('token'),
  };
}
