/** The counters of a pageserver, by name in one place (Prometheus text at GET /metrics). */
import {type Counter, type Gauge, type Histogram, Metrics} from '#runtime/metrics.ts';

export class PageserverMetrics {
  readonly registry = new Metrics();
  readonly getPages: Counter;
  readonly packedPages: Counter;
  readonly getPageErrors: Counter;
  readonly getPagesSeconds: Histogram;
  readonly layersPerRead: Histogram;
  readonly redoRecords: Counter;
  readonly objectReads: Counter;
  readonly objectReadBytes: Counter;
  readonly blocksRepaired: Counter;
  readonly localCacheHits: Gauge;
  readonly localCacheMisses: Gauge;
  readonly localCacheBytes: Gauge;
  readonly localCacheDamaged: Gauge;
  readonly localCacheEvictions: Gauge;
  readonly cacheHits: Gauge;
  readonly cacheMisses: Gauge;
  readonly cacheBytes: Gauge;
  readonly cacheEvictions: Gauge;
  readonly ingestedRecords: Counter;
  readonly ingestedBytes: Counter;
  readonly ingestLagBytes: Gauge;
  readonly ingestStopped: Gauge;
  readonly layersUploaded: Counter;
  readonly layerBytesUploaded: Counter;
  readonly indexesUploaded: Counter;
  readonly uploadFailures: Counter;
  readonly compactionSteps: Counter;
  readonly compactionBytes: Counter;
  readonly compactionFailures: Counter;
  readonly layersCollected: Counter;
  readonly orphansDeleted: Counter;
  readonly memoryLayerBytes: Gauge;
  readonly l0LayersMax: Gauge;
  readonly timelines: Gauge;
  readonly secondaries: Gauge;
  readonly secondaryFetchedBytes: Counter;

  constructor() {
    const m = this.registry;
    this.getPages = m.counter('pagoda_getpage_pages_total', 'Pages served');
    this.packedPages = m.counter(
      'pagoda_getpage_packed_pages_total',
      'Of the pages served, those sent as they lie in storage',
    );
    this.getPageErrors = m.counter('pagoda_getpage_errors_total', 'Page requests answered with an error');
    this.getPagesSeconds = m.histogram('pagoda_getpage_seconds', 'Time from a getPages request to its answer');
    this.layersPerRead = m.histogram(
      'pagoda_getpage_layers_per_read',
      'Layer files looked into for one page (read amplification)',
      {},
      [0, 1, 2, 4, 8, 16, 32, 64, 128, 256],
    );
    this.redoRecords = m.counter('pagoda_redo_records_total', 'WAL records and patches applied for reads');
    this.objectReads = m.counter('pagoda_object_reads_total', 'Range reads of layer objects');
    this.objectReadBytes = m.counter('pagoda_object_read_bytes_total', 'Bytes of range reads of layer objects');
    this.blocksRepaired = m.counter(
      'pagoda_blocks_repaired_total',
      'Blocks that came damaged, and whole when they were read again from the object store',
    );
    this.localCacheHits = m.gauge('pagoda_local_cache_hits', 'Chunks of objects found on local disk');
    this.localCacheMisses = m.gauge('pagoda_local_cache_misses', 'Chunks of objects not found on local disk');
    this.localCacheBytes = m.gauge('pagoda_local_cache_bytes', 'Local disk held by chunks of objects');
    this.localCacheDamaged = m.gauge(
      'pagoda_local_cache_damaged',
      'Chunks on local disk that were not as they had been written (and were fetched again)',
    );
    this.localCacheEvictions = m.gauge('pagoda_local_cache_evictions', 'Chunks removed from local disk to make room');
    this.cacheHits = m.gauge('pagoda_block_cache_hits', 'Blocks found in memory');
    this.cacheMisses = m.gauge('pagoda_block_cache_misses', 'Blocks not found in memory');
    this.cacheBytes = m.gauge('pagoda_block_cache_bytes', 'Memory held by cached blocks');
    this.cacheEvictions = m.gauge('pagoda_block_cache_evictions', 'Blocks removed from memory to make room');
    this.ingestedRecords = m.counter('pagoda_ingest_records_total', 'WAL records ingested');
    this.ingestedBytes = m.counter('pagoda_ingest_bytes_total', 'WAL bytes ingested');
    this.ingestLagBytes = m.gauge(
      'pagoda_ingest_lag_bytes',
      'Committed WAL not yet ingested, of the timeline with the most',
    );
    this.ingestStopped = m.gauge(
      'pagoda_ingest_stopped_timelines',
      'Timelines that take no more WAL because of an error; GET /v1/tenant/…/timeline/… says which',
    );
    this.layersUploaded = m.counter('pagoda_layers_uploaded_total', 'Layer objects uploaded');
    this.layerBytesUploaded = m.counter('pagoda_layer_bytes_uploaded_total', 'Bytes of layer objects uploaded');
    this.indexesUploaded = m.counter('pagoda_indexes_uploaded_total', 'Index objects uploaded');
    this.uploadFailures = m.counter('pagoda_upload_failures_total', 'Uploads that failed and are tried again');
    this.compactionSteps = m.counter('pagoda_compaction_steps_total', 'Steps of compaction carried out');
    this.compactionBytes = m.counter('pagoda_compaction_bytes_total', 'Bytes of layers written by compaction');
    this.compactionFailures = m.counter('pagoda_compaction_failures_total', 'Steps of compaction that failed');
    this.layersCollected = m.counter('pagoda_gc_layers_total', 'Layers removed because nothing can read them any more');
    this.orphansDeleted = m.counter('pagoda_gc_orphans_total', 'Objects deleted that no index names');
    this.memoryLayerBytes = m.gauge('pagoda_memory_layer_bytes', 'Memory held by layers that are not uploaded yet');
    this.l0LayersMax = m.gauge('pagoda_l0_layers', 'Layers not yet compacted, of the timeline with the most');
    this.timelines = m.gauge('pagoda_timelines', 'Timelines attached');
    this.secondaries = m.gauge('pagoda_secondary_tenants', 'Tenants that are kept ready to be taken over');
    this.secondaryFetchedBytes = m.counter(
      'pagoda_secondary_fetched_bytes_total',
      'Bytes fetched to local disk for tenants that are kept ready',
    );
  }
}
