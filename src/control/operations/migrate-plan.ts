/**
 * Moves one shard of a tenant to another pageserver while it is read and written to:
 *
 *   warm       the target follows what the source uploads
 *   save       the source uploads what it has in memory, so that little is left to ingest
 *   switch     the target owns the shard, under a new generation: what the source uploads from here on is never read
 *   attach     the target loads the index and ingests to where the source is; nothing is deleted: the source is still read
 *   let-go     the source sends its readers away: they ask the control plane, and go on at the target
 *   release    the target may delete what is no longer needed
 *
 * Killed at any point it goes on where it was. When the target does not get there, the shard goes back (cleanUp).
 *
 * State in: `shardId`, `to`, `leaves?` (the source shall not keep it ready).
 */
import {type Attachment, readAttachments} from '#control/attachments.ts';
import {nextGeneration} from '#control/generations.ts';
import type {PlanContext} from '#control/operations/plan-context.ts';
import {type OperationState, type Plan, SkippedError} from '#control/operations/plan.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import {pageserverLoad, placeSecondary} from '#control/placement.ts';
import {parseShardId, tenantOfShardId} from '#wire/shard.ts';

interface MigrateState {
  readonly shardId: string;
  readonly to: number;
  readonly leaves?: boolean;
  /** It goes back to where it came from: one that fails here is not moved again by itself. */
  readonly returns?: boolean;
  /** Set by `warm`. */
  readonly from?: number;
}

const warmMsMax = 30_000;
const catchUpMsMax = 60_000;
const pollMs = 50;

/** What a migration holds: nobody else moves the shard, and it is not brought in line. */
export function migrationLock(shardId: string): string {
  return `attachment:${shardId}`;
}

export function migrationDraft(
  projectId: string,
  state: Pick<MigrateState, 'shardId' | 'to' | 'leaves' | 'returns'>,
): OperationDraft {
  return {
    projectId,
    action: 'apply_storage_config',
    kind: 'migrate_tenant',
    locks: [migrationLock(state.shardId)],
    state: {...state},
  };
}

export function migratePlan(context: PlanContext): Plan {
  const {store, storage, clock, log} = context;
  const read = (state: OperationState): MigrateState => state as unknown as MigrateState;
  /** Skips what somebody else has decided otherwise meanwhile: a failover, or the deletion of the tenant. */
  const shardOf = async ({shardId}: MigrateState, heldBy?: number): Promise<Attachment> => {
    const {tenantId, number} = parseShardId(shardId);
    const shard = (await readAttachments(store, tenantId)).find((s) => s.number === number);
    if (shard === undefined) throw new SkippedError(`tenant ${tenantId} is gone`);
    if (heldBy !== undefined && shard.pageserverId !== heldBy)
      throw new SkippedError(`shard ${shardId} is on pageserver ${shard.pageserverId} by now`);
    return shard;
  };
  return {
    kind: 'migrate_tenant',
    failuresMax: 12,
    cleanUp({project_id: projectId, state}) {
      const {shardId, from, to, returns} = read(JSON.parse(state) as OperationState);
      if (from === undefined || returns === true) return [];
      log.error('a migration failed: the shard goes back', {shard: shardId, from, to});
      return [migrationDraft(projectId, {shardId, to: from, returns: true})];
    },
    steps: [
      {
        name: 'warm',
        async effect({state}) {
          const migration = read(state);
          const {shardId, to} = migration;
          const {pageserverId: from} = await shardOf(migration);
          if (from === to) throw new SkippedError(`shard ${shardId} is on pageserver ${to} already`);
          const target = storage.pageserver(to);
          await target.keepReady(shardId);
          const started = clock.monotonicMs();
          while (clock.monotonicMs() - started < warmMsMax && (await target.tenantStatus(shardId))?.isReady !== true)
            await clock.sleep(pollMs);
          return {from};
        },
      },
      {
        name: 'save',
        async effect({state}) {
          const {shardId, from} = read(state);
          await storage
            .pageserver(from!)
            .saveTenant(shardId)
            .catch((error: unknown) =>
              log.warn('not saved before it moves: the target ingests it again', {shard: shardId, error}),
            );
          return undefined;
        },
      },
      {
        name: 'switch',
        async effect({state}) {
          await shardOf(read(state), read(state).from);
          return undefined;
        },
        async record(trx, {state}) {
          const {shardId, from, to, leaves} = read(state);
          const {tenantId, number} = parseShardId(shardId);
          const shard = (await readAttachments(trx, tenantId)).find((s) => s.number === number);
          if (shard === undefined || shard.pageserverId !== from) return; // the next step sees it
          const secondary =
            leaves === true
              ? placeSecondary({
                  nodes: storage.pageservers,
                  of: to,
                  avoid: [from],
                  load: await pageserverLoad(trx),
                })
              : from;
          await trx
            .updateTable('attachments')
            .set({
              pageserver_id: to,
              generation: nextGeneration(shard.generation, clock),
              secondary_id: secondary ?? null,
            })
            .where('tenant_id', '=', tenantId)
            .where('shard_number', '=', number)
            .execute();
        },
      },
      {
        name: 'attach',
        async effect({state}) {
          const migration = read(state);
          const {shardId, to, from} = migration;
          const {generation} = await shardOf(migration, to);
          const target = storage.pageserver(to);
          await target.attachTenant(shardId, generation, true);
          // A source that does not answer is not read either.
          const source = await storage
            .pageserver(from!)
            .tenantStatus(shardId)
            .catch(() => undefined);
          const started = clock.monotonicMs();
          for (;;) {
            const reached = (await target.tenantStatus(shardId))?.reached;
            const behind = [...(source?.reached ?? [])].find(([id, lsn]) => (reached?.get(id) ?? 0) < lsn);
            if (behind === undefined) return {attachMs: Math.round(clock.monotonicMs() - started)};
            if (clock.monotonicMs() - started > catchUpMsMax)
              throw new Error(
                `pageserver ${to} has not ingested timeline ${behind[0]} of shard ${shardId} to where pageserver ${from} is within ${catchUpMsMax / 1000} s`,
              );
            await shardOf(migration, to);
            await clock.sleep(pollMs);
          }
        },
      },
      {
        name: 'let-go',
        async effect({state}) {
          const migration = read(state);
          const {shardId, to, from} = migration;
          const {secondaryId} = await shardOf(migration, to);
          const source = storage.pageserver(from!);
          try {
            if (secondaryId === from) await source.keepReady(shardId);
            else await source.detachTenant(shardId);
          } catch (error) {
            // It finds out itself that its generation is stale, or is told when it is back.
            log.warn('the pageserver that a tenant has left does not answer', {
              shard: shardId,
              pageserver: from,
              error,
            });
          }
          if (secondaryId !== undefined && secondaryId !== from)
            await storage
              .pageserver(secondaryId)
              .keepReady(shardId)
              .catch((error: unknown) => log.warn('nobody keeps a shard ready yet', {shard: shardId, error}));
          return undefined;
        },
      },
      {
        name: 'release',
        async effect({state}) {
          const migration = read(state);
          const {generation} = await shardOf(migration, migration.to);
          await storage.pageserver(migration.to).attachTenant(migration.shardId, generation);
          log.info('a shard has moved', {
            tenant: tenantOfShardId(migration.shardId),
            shard: migration.shardId,
            from: migration.from,
            to: migration.to,
          });
          return undefined;
        },
      },
    ],
  };
}
