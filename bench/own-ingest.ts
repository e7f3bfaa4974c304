/**
 * Our side of `ingest`: what a pageserver does with the WAL of one timeline, as src/pageserver/ingest/receive.ts does it but
 * without the socket: read (page headers, checksums), decode, interpret, put into the open layer. Layers that are full are
 * frozen and let go, as if uploaded at no cost.
 */
import {MemoryBudget} from '#pageserver/timeline/memory-budget.ts';
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {importDataDirectory} from '#pageserver/ingest/import.ts';
import {Interpreter} from '#pageserver/ingest/interpret.ts';
import type {IngestSink} from '#pageserver/ingest/sink.ts';
import {BlockCache} from '#pageserver/layers/block-cache.ts';
import {MemoryLayer} from '#pageserver/layers/memory-layer.ts';
import {PageserverMetrics} from '#pageserver/metrics.ts';
import {TimelineState, defaultLimits} from '#pageserver/timeline/state.ts';
import {TimelineWriter} from '#pageserver/timeline/write-path.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {tarDataDirectory} from '#postgres/data-directory.ts';
import {type Lsn, invalidLsn} from '#postgres/lsn.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {createLog} from '#runtime/log.ts';
import {systemRandom} from '#runtime/random.ts';
import {collectGarbage} from './collect-garbage.ts';
import {type Recording, walChunks} from './recorded-wal.ts';

export interface OwnIngest {
  /** User + system of the whole process, garbage collection included. */
  readonly cpuNs: number;
  readonly records: number;
  readonly walBytes: number;
  /** Of the layers that were frozen, and of the open one. */
  readonly layerBytes: number;
}

/**
 * What the round before used, its layer but for the bytes. A pageserver always has timelines that ingest; without any, V8
 * throws the compiled code away at the next full collection, and every round would measure the compiler.
 */
let lastRound: unknown;

export async function ingestByPagoda(recording: Recording): Promise<OwnIngest> {
  const state = newState();
  let layerBytes = 0;
  const letGo = (): void => {
    for (const {layer} of state.frozen) layerBytes += layer.bytes;
    state.frozen.length = 0;
  };
  const hooks = {onAdvance: () => {}, onFrozen: letGo, onFarAhead: () => {}};
  const first = await TimelineWriter.load(state, hooks);
  first.beginImport();
  const imported = await importDataDirectory({
    source: tarDataDirectory(systemDisk, recording.base),
    sink: withoutPages(first),
  });
  first.endImport(imported.lsn);
  const writer = first;
  letGo();
  layerBytes = 0;
  const checkpoint = CheckpointState.decode(imported.checkpoint.encode());
  const interpreter = new Interpreter(writer, writer, checkpoint);
  writer.walLogHints = checkpoint.walLogHints;

  const {chunks, bytes} = walChunks(recording);
  const reader = new WalReader({startLsn: recording.startLsn});
  const record = new WalRecord();
  let records = 0;
  collectGarbage();
  void lastRound;
  const before = process.cpuUsage();
  for (const chunk of chunks) {
    reader.push(chunk);
    while (reader.next(record)) {
      if (record.endLsn <= imported.lsn) continue; // the shutdown checkpoint
      records++;
      let outcome = interpreter.interpret(record);
      while (outcome.kind === 'missing') {
        await writer.loadRelations([...outcome.relations]);
        outcome = interpreter.interpret(record);
      }
      if (outcome.kind === 'error') throw outcome.error;
      if (writer.hasUnfinishedWork) await writer.finishRecord(record.endLsn, () => Promise.resolve());
      writer.endRecord(record.endLsn);
    }
  }
  const used = process.cpuUsage(before);
  if (reader.failure !== undefined || state.lastRecordLsn < recording.endLsn)
    throw new Error(
      `${recording.name}: the WAL could not be read to its end: ${reader.failure?.reason ?? 'it ends early'}`,
    );
  layerBytes += state.open?.bytes ?? 0;
  state.open = new MemoryLayer(state.lastRecordLsn, 0);
  lastRound = {state, writer, interpreter, reader, record};
  return {cpuNs: (used.user + used.system) * 1000, records, walBytes: bytes, layerBytes};
}

function newState(): TimelineState {
  return new TimelineState(
    {
      clock: systemClock,
      random: systemRandom,
      store: new MemoryObjectStore(),
      cache: new BlockCache(1 << 20),
      log: createLog({component: 'bench', level: 'error'}),
      metrics: new PageserverMetrics(),
      limits: defaultLimits,
      memory: new MemoryBudget(1 << 30),
    },
    {
      tenantId: '0'.repeat(32),
      timelineId: '1'.repeat(32),
      pgVersion: 15,
      systemId: '0',
      generation: 1,
      lifecycle: 'creating',
      ancestor: undefined,
      initialLsn: invalidLsn,
      diskConsistentLsn: 0 as Lsn,
      safekeepers: [],
      retention: {windowSeconds: 604_800, windowBytes: 0},
      gcCutoffLsn: invalidLsn,
    },
  );
}

/** The import's sizes and metadata, without the pages: ingest does not read them. */
function withoutPages(writer: TimelineWriter): IngestSink {
  return new Proxy<IngestSink>(writer, {
    get(target, name) {
      if (name === 'relationPageImage') return () => {};
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
}
