import {type Counter, type Gauge, type Histogram, Metrics} from '#runtime/metrics.ts';

/** What a safekeeper counts; served on GET /metrics. */
export interface SafekeeperMetrics {
  readonly registry: Metrics;
  readonly writtenBytes: Counter;
  readonly flushSeconds: Histogram;
  readonly timelines: Gauge;
  readonly refusedConnections: Counter;
  readonly archivedBytes: Counter;
  readonly archiveFailures: Counter;
  readonly archiveReadBytes: Counter;
  readonly localBytes: Gauge;
}

/** What /metrics says of a timeline that is in memory. */
export interface TimelineFigures {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly term: number;
  readonly flushLsn: number;
  readonly commitLsn: number;
  readonly archivedLsn: number;
  readonly localStartLsn: number;
  readonly remoteConsistentLsn: number;
  readonly localBytes: number;
  readonly readers: number;
  readonly archiveFails: boolean;
}

const timelineGauges: readonly (readonly [string, string, (figures: TimelineFigures) => number])[] = [
  ['term', 'Term promised', (f) => f.term],
  ['flush_lsn', 'End of durable WAL', (f) => f.flushLsn],
  ['commit_lsn', 'End of committed WAL', (f) => f.commitLsn],
  ['archived_lsn', 'WAL below was found in the object store', (f) => f.archivedLsn],
  ['local_start_lsn', 'WAL from here on is on the local disk', (f) => f.localStartLsn],
  ['remote_consistent_lsn', 'Pageservers have uploaded everything below', (f) => f.remoteConsistentLsn],
  ['wal_local_bytes', 'WAL bytes on the local disk', (f) => f.localBytes],
  ['wal_readers', 'Readers of WAL that are connected', (f) => f.readers],
  ['archive_failing', '1: the last try to archive failed', (f) => (f.archiveFails ? 1 : 0)],
];

/** Prometheus text: only timelines that are in memory, so that what rests costs nothing here either. */
export function timelineMetricsText(timelines: readonly TimelineFigures[]): string {
  const lines: string[] = [];
  for (const [name, help, value] of timelineGauges) {
    const full = `pagoda_safekeeper_timeline_${name}`;
    lines.push(`# HELP ${full} ${help}`, `# TYPE ${full} gauge`);
    for (const f of timelines) lines.push(`${full}{tenant="${f.tenantId}",timeline="${f.timelineId}"} ${value(f)}`);
  }
  return `${lines.join('\n')}\n`;
}

export function safekeeperMetrics(): SafekeeperMetrics {
  const registry = new Metrics();
  return {
    registry,
    writtenBytes: registry.counter('pagoda_safekeeper_wal_written_bytes_total', 'WAL bytes written'),
    flushSeconds: registry.histogram('pagoda_safekeeper_wal_flush_seconds', 'Time of one fdatasync of WAL'),
    timelines: registry.gauge('pagoda_safekeeper_timelines_loaded', 'Timelines in memory'),
    archivedBytes: registry.counter(
      'pagoda_safekeeper_wal_archived_bytes_total',
      'WAL bytes put into the object store',
    ),
    archiveFailures: registry.counter(
      'pagoda_safekeeper_wal_archive_failures_total',
      'Tries to archive WAL, or to find it archived, that failed',
    ),
    archiveReadBytes: registry.counter(
      'pagoda_safekeeper_wal_archive_read_bytes_total',
      'WAL bytes read from the object store for readers of trimmed WAL',
    ),
    localBytes: registry.gauge('pagoda_safekeeper_wal_local_bytes', 'WAL bytes on the local disk, loaded timelines'),
    refusedConnections: registry.counter('pagoda_safekeeper_connections_refused_total', 'Connections refused at hello'),
  };
}
