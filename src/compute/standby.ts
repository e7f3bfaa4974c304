/**
 * Computes that only read, as stock hot standbys: nothing of theirs ever reaches storage, and Postgres itself refuses to write.
 *
 *  - static: the branch at one LSN, for ever. No WAL comes after its base.
 *  - replica: follows the branch. Its base is what the pageserver has; from there it replays what the safekeepers have
 *    committed (wal-relay.ts). A record about a page that is not local has the page fetched at the base first, so a local page
 *    is always the base and every record since.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {parseControlFile} from '#postgres/control-file.ts';
import {makeReplicaStart} from '#postgres/wal/replica-start.ts';
import {segmentFileName, segmentNumber, segmentStart} from '#postgres/wal/segment.ts';
import {type Disk, joinPath, replaceFile} from '#runtime/disk.ts';
import {requestJson} from '#runtime/http.ts';
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Locations} from '#compute/locations.ts';
import type {ComputeSpec, ShardLocation} from '#wire/compute-spec.ts';
import {defaultSettings} from '#compute/postgres-settings.ts';
import {runningXids} from '#compute/running-transactions.ts';

/** Where the relay listens, below the compute's run directory: a port in a socket's name. */
export const relayPort = 1;

export interface ReplicaBase {
  /** Start of the record before the base in this standby's own WAL. */
  readonly previousLsn: Lsn;
  /** Its WAL below the base, from the start of the base's segment on. */
  readonly localWal: {readonly startLsn: Lsn; readonly bytes: Buffer};
}

/** Makes pg_wal and pg_control of a basebackup those of a replica that begins at `lsn`. */
export function writeReplicaBase(disk: Disk, pgdata: string, lsn: Lsn): ReplicaBase {
  const controlPath = joinPath(pgdata, 'global', 'pg_control');
  const made = makeReplicaStart({
    lsn,
    controlFile: parseControlFile(disk.readFile(controlPath)),
    runningXids: runningXids(disk, pgdata),
  });
  for (const {name, bytes} of made.files) replaceFile(disk, joinPath(pgdata, 'pg_wal', name), bytes);
  replaceFile(disk, controlPath, made.controlFile);
  const own = made.files.find(({name}) => name === segmentFileName(1, segmentNumber(lsn)));
  const startLsn = segmentStart(lsn);
  return {
    previousLsn: made.previousLsn,
    localWal: {startLsn, bytes: Buffer.from(own?.bytes.subarray(0, lsn - startLsn) ?? Buffer.alloc(0))},
  };
}

/** Settings of a hot standby, over those that every compute has. */
export function standbySettings(
  disk: Disk,
  pgdata: string,
  spec: ComputeSpec,
  relayDir: string | undefined,
): Record<string, string> {
  const control = parseControlFile(disk.readFile(joinPath(pgdata, 'global', 'pg_control')));
  const wanted: Record<string, string | undefined> = {...defaultSettings(), ...spec.settings};
  // A standby must have room for what the primary had (xlogrecovery.c CheckRequiredParameterValues).
  const atLeast = (name: string, minimum: number): [string, string] => [
    name,
    String(Math.max(minimum, Number(wanted[name] ?? 0) || 0)),
  ];
  return {
    hot_standby: 'on',
    synchronous_standby_names: '',
    recovery_target_timeline: 'current',
    ...Object.fromEntries([
      atLeast('max_connections', control.maxConnections),
      atLeast('max_worker_processes', control.maxWorkerProcesses),
      atLeast('max_wal_senders', control.maxWalSenders),
      atLeast('max_prepared_transactions', control.maxPreparedTransactions),
      atLeast('max_locks_per_transaction', control.maxLocksPerTransaction),
    ]),
    ...(relayDir === undefined
      ? {}
      : {
          primary_conninfo: `host=${relayDir} port=${relayPort} user=relay gssencmode=disable sslmode=disable`,
          wal_receiver_status_interval: '1s',
          wal_retrieve_retry_interval: '200ms',
        }),
  };
}

const leaseSeconds = 600;
const renewEveryMs = 120_000;
const retryMs = 5_000;

/** Keeps pageservers from forgetting the one LSN that this compute reads at, in every shard. */
export class Lease {
  readonly #options: {spec: ComputeSpec; locations: Locations; lsn: Lsn; token: () => string; clock: Clock; log: Log};
  #timer: Timer | undefined;
  #stopped = false;

  /** Rejects when the pageserver says that the LSN is gone already; any other trouble is tried again behind the scenes. */
  readonly granted: Promise<void>;

  constructor(options: {
    spec: ComputeSpec;
    locations: Locations;
    lsn: Lsn;
    token: () => string;
    clock: Clock;
    log: Log;
  }) {
    this.#options = options;
    this.granted = this.#renew(true);
    this.granted.catch(() => {});
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
  }

  async #renew(isFirst: boolean): Promise<void> {
    const {spec, locations, lsn, token, clock, log} = this.#options;
    let next = renewEveryMs;
    const ask = async ({host, httpPort, shardId}: ShardLocation): Promise<void> => {
      const {status, json} = await requestJson({
        method: 'PUT',
        url: `http://${host}:${httpPort}/v1/tenant/${shardId}/timeline/${spec.timelineId}/lease`,
        token: token(),
        body: {lsn: formatLsn(lsn), ttlSeconds: leaseSeconds},
        timeoutMs: 10_000,
      });
      if (status === 410)
        throw new LeaseRefused(
          `LSN ${formatLsn(lsn)} of branch ${spec.branchId} is older than its history window; choose a later point`,
        );
      if (status < 300) return;
      next = retryMs;
      void locations.ask();
      log.warn('no lease on the LSN that this compute reads at', {
        status,
        tenant: shardId,
        lsn: formatLsn(lsn),
        answer: JSON.stringify(json),
      });
    };
    try {
      await Promise.all(locations.shards.map(ask));
    } catch (error) {
      if (error instanceof LeaseRefused && isFirst) throw error;
      next = retryMs;
      void locations.ask();
      log.warn('the lease on the LSN that this compute reads at could not be renewed', {error});
    }
    if (!this.#stopped) this.#timer = clock.setTimer(next, () => void this.#renew(false));
  }
}

class LeaseRefused extends Error {}
