import {type Counter, type Gauge, type Histogram, Metrics} from '#runtime/metrics.ts';

/** What a safekeeper counts; served on GET /metrics. */
export interface SafekeeperMetrics {
  readonly registry: Metrics;
  readonly writtenBytes: Counter;
  readonly flushSeconds: Histogram;
  readonly timelines: Gauge;
  readonly refusedConnections: Counter;
}

export function safekeeperMetrics(): SafekeeperMetrics {
  const registry = new Metrics();
  return {
    registry,
    writtenBytes: registry.counter('pagoda_safekeeper_wal_written_bytes_total', 'WAL bytes written'),
    flushSeconds: registry.histogram('pagoda_safekeeper_wal_flush_seconds', 'Time of one fdatasync of WAL'),
    timelines: registry.gauge('pagoda_safekeeper_timelines_loaded', 'Timelines in memory'),
    refusedConnections: registry.counter('pagoda_safekeeper_connections_refused_total', 'Connections refused at hello'),
  };
}
