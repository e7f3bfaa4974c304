/** The compute's data directory: unpacked from a basebackup, configured, thrown away. */
import type {Lsn} from '#postgres/lsn.ts';
import {formatLsn, parseLsn} from '#postgres/lsn.ts';
import {parseControlFile} from '#postgres/control-file.ts';
import {makeCheckpointSegment} from '#postgres/wal/checkpoint-segment.ts';
import type {Disk} from '#runtime/disk.ts';
import {joinPath, replaceFile} from '#runtime/disk.ts';
import {requestStream} from '#runtime/http.ts';
import {giveAway, unpackBasebackup, writeSparse} from '#compute/basebackup.ts';
import type {Locations} from '#compute/locations.ts';
import type {ComputeSpec} from '#wire/compute-spec.ts';
import {type ReplicaBase, writeReplicaBase} from '#compute/standby.ts';
import {hostBasedAuthentication, postgresqlConf} from '#compute/postgres-settings.ts';

/** The tenant may be moving, or its pageserver have died. */
const followMsMax = 10_000;
/** Waiting for the pageserver to reach X is part of it. */
const basebackupMsMax = 120_000;

export interface DataDirectory {
  /** Where it starts. */
  readonly lsn: Lsn;
  /** Of a replica. */
  readonly replica?: ReplicaBase;
}

/**
 * Makes `path` a data directory that starts at `lsn` without recovery; without `lsn` at the newest that the pageserver has. One
 * of a replica starts in the middle of a branch that goes on (standby.ts). Throws an Error that names tenant, branch and LSN
 * when the pageserver does not give the basebackup.
 */
export async function makeDataDirectory(options: {
  disk: Disk;
  path: string;
  spec: ComputeSpec;
  locations: Locations;
  lsn: Lsn | undefined;
  token: string;
  owner: string;
  forReplica?: boolean;
}): Promise<DataDirectory> {
  const {disk, path, spec} = options;
  const at = options.lsn === undefined ? 'newest LSN' : `LSN ${formatLsn(options.lsn)}`;
  const where = `tenant ${spec.tenantId}, branch ${spec.branchId} (timeline ${spec.timelineId}), ${at}`;
  const response = await options.locations.follow(0, followMsMax, async ({host, httpPort, shardId}) => {
    const url =
      `http://${host}:${httpPort}/v1/tenant/${shardId}/timeline/${spec.timelineId}` +
      `/basebackup?wal=none${options.lsn === undefined ? '' : `&lsn=${encodeURIComponent(formatLsn(options.lsn))}`}`;
    const answer = await requestStream({method: 'GET', url, token: options.token, timeoutMs: basebackupMsMax});
    if (answer.status !== 421) return answer;
    for await (const _ of answer.body); // read to the end, so that the connection can be used again
    return 'elsewhere';
  });
  if (response.status !== 200) {
    const parts: Buffer[] = [];
    for await (const part of response.body) parts.push(part);
    throw new Error(
      `the pageserver gave no basebackup (${where}): ${response.status} ${Buffer.concat(parts).toString('utf8').slice(0, 2000)}`,
    );
  }
  disk.remove(path);
  await unpackBasebackup(disk, path, response.body, {where, isLasting: false});
  const lsn = parseLsn(response.headers['x-pagoda-lsn'] ?? '');
  const previous = response.headers['x-pagoda-previous-lsn'];
  let replica: ReplicaBase | undefined;
  if (options.forReplica === true) replica = writeReplicaBase(disk, path, lsn);
  else writeCheckpoint(disk, path, lsn, previous === undefined ? undefined : parseLsn(previous));
  replaceFile(disk, joinPath(path, 'postgresql.conf'), Buffer.from(postgresqlConf(spec)));
  replaceFile(disk, joinPath(path, 'pg_hba.conf'), Buffer.from(hostBasedAuthentication));
  replaceFile(disk, joinPath(path, 'pg_ident.conf'), Buffer.alloc(0));
  giveAway(disk, path, options.owner);
  return {lsn, ...(replica === undefined ? {} : {replica})};
}

/** The WAL that pg_control speaks of: one checkpoint at the start LSN. Made here, because most of a segment is zeros. */
function writeCheckpoint(disk: Disk, pgdata: string, lsn: Lsn, previousLsn: Lsn | undefined): void {
  const controlFile = parseControlFile(disk.readFile(joinPath(pgdata, 'global', 'pg_control')));
  const made = makeCheckpointSegment({lsn, controlFile, ...(previousLsn === undefined ? {} : {previousLsn})});
  for (const {name, bytes} of made.files) {
    const file = disk.open(joinPath(pgdata, 'pg_wal', name), 'truncate');
    try {
      writeSparse(file, bytes, 0);
      file.truncate(bytes.length);
    } finally {
      file.close();
    }
  }
}
