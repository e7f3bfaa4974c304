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
