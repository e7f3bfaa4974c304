/** Where the data of a branch is, for operators' commands: its tenant, its timeline, and where each shard is held. */
import {HttpError, type Route} from '#runtime/http.ts';
import {asHttpError, type Claims, requireNode} from '#wire/auth.ts';
import {shardLocations} from '#control/attachments.ts';
import type {StorageClients} from '#control/storage-client.ts';
import type {Store} from '#control/store/schema.ts';

export function branchPlaceRoutes(context: {
  readonly store: Store;
  readonly storage: Pick<StorageClients, 'pageservers'>;
}): Route[] {
  const {store} = context;
  return [
    {
      method: 'GET',
      path: '/internal/v1/branch_places',
      handler: async (request) => {
        try {
          requireNode(request.claims as Claims, 'control');
        } catch (error) {
          throw asHttpError(error);
        }
        const wanted = request.query.get('branch');
        const rows = await store
          .selectFrom('branches')
          .innerJoin('projects', 'projects.id', 'branches.project_id')
          .select([
            'branches.id as branchId',
            'branches.name as name',
            'branches.project_id as projectId',
            'branches.timeline_id as timelineId',
            'branches.is_default as isDefault',
            'projects.tenant_id as tenantId',
          ])
          .where('branches.deleted_at', 'is', null)
          .execute();
        const branches = rows.filter(
          (row) => wanted === null || row.branchId === wanted || row.name === wanted || row.timelineId === wanted,
        );
        if (wanted !== null && branches.length === 0)
          throw new HttpError(404, 'not_found', `there is no branch ${wanted}`);
        const places = branches.map(async (row) => ({
          ...row,
          isDefault: row.isDefault === 1,
          shards: await shardLocations(context, row.tenantId),
        }));
        return {status: 200, json: {branches: await Promise.all(places)}};
      },
    },
  ];
}
