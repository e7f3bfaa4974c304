/** What a graceful stop keeps that a crash may lose (reference: WAL holds neither free-space maps nor statistics). */
import type {Disk} from '#runtime/disk.ts';
import {joinPath} from '#runtime/disk.ts';
import {requestStream} from '#runtime/http.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {formatLsn} from '#postgres/lsn.ts';
import type {Locations} from '#compute/locations.ts';
import type {ComputeSpec} from '#wire/compute-spec.ts';

/** Statistics are not worth more of a stop's time. */
const followMsMax = 1000;

/**
 * Gives pg_stat/pgstat.stat, written by Postgres at its clean stop, to the pageserver. It is true only for the state at
 * exactly `lsn`: a basebackup at that LSN contains it, any other does not. Throws when the pageserver refuses.
 */
export async function uploadStatistics(options: {
  disk: Disk;
  pgdata: string;
  spec: ComputeSpec;
  locations: Locations;
  lsn: Lsn;
  token: string;
}): Promise<void> {
  const {disk, spec} = options;
  const path = joinPath(options.pgdata, 'pg_stat', 'pgstat.stat');
  if (!disk.exists(path)) return;
  await options.locations.follow(0, followMsMax, async ({host, httpPort, shardId}) => {
    const {status, body} = await requestStream({
      method: 'PUT',
      url: `http://${host}:${httpPort}/v1/tenant/${shardId}/timeline/${spec.timelineId}/pgstat?lsn=${encodeURIComponent(formatLsn(options.lsn))}`,
      token: options.token,
      body: [disk.readFile(path)],
      timeoutMs: 10_000,
    });
    for await (const _ of body); // read to the end, so that the connection can be used again
    if (status === 421) return 'elsewhere';
    if (status !== 200) throw new Error(`pageserver ${host}:${httpPort} answered ${status}`);
    return undefined;
  });
}
