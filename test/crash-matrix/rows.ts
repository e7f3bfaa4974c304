/**
 * How each durable step is reached. A driver does, again and again until the process has died, what makes a role take the step.
 * A step of the code without a row here, or a row without a step, fails the command.
 */
import {existsSync} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {FolderObjectStore} from '#objectstore/folder-object-store.ts';
import {WalArchive, walFooterBytes} from '#objectstore/wal-archive.ts';
import {layerName, timelinePrefix} from '#pageserver/timeline/index-object.ts';
import {type Lsn, formatLsn, parseLsn} from '#postgres/lsn.ts';
import {segmentFileName, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {systemDisk} from '#runtime/disk.ts';
import {requestJson} from '#runtime/http.ts';
import {newId, systemRandom} from '#runtime/random.ts';
import type {Cell} from '../nemesis/cell.ts';
import {safekeeperNames} from '../nemesis/cell.ts';
import {safekeeperStatus} from '../nemesis/safekeeper-content.ts';
import {makeWal, startLsn as walStart} from '../safekeeper/cell.ts';
import {until} from '../until.ts';

export interface Stage {
  readonly cell: Cell;
  readonly endpointId: string;
  readonly tenant: string;
  readonly timeline: string;
  /** A superuser's statement at the compute; errors are nobody's concern. */
  readonly admin: (sql: string) => Promise<void>;
  /** True as soon as the armed process has died. */
  readonly hasFired: () => boolean;
}

type Driver = (stage: Stage) => Promise<void>;

export interface Row {
  readonly driver: Driver;
  /** Only this role's process is meant, when others take the step too. */
  readonly process?: string;
  /** Walked a second time with the step failing (EIO) instead of the process dying there: the process must end by itself. */
  readonly fails?: boolean;
  /** Looked at when everything is back; answers what is wrong. */
  readonly after?: (stage: Stage) => Promise<string[]>;
  /** In the short form of the matrix (npm test). */
  readonly short?: boolean;
}

/** The clients' writes are enough. */
const load: Driver = () => sleep(200);

/** A new election: the compute is killed, the clients' next connections start it. */
const election: Driver = async ({cell, endpointId, hasFired}) => {
  const c = cell.compute(endpointId);
  for (const pid of [c.agent, c.proposer, c.postgres]) kill(pid);
  for (let waited = 0; waited < 4000 && !hasFired(); waited += 100) await sleep(100);
};

const newSegment: Driver = async ({admin, hasFired}) => {
  await admin('select pg_switch_wal()');
  for (let waited = 0; waited < 3000 && !hasFired(); waited += 100) await sleep(100);
};

/** A branch comes and goes. */
const branch: Driver = async ({cell}) => {
  const {projectId} = cell;
  try {
    const {branch: made} = await cell.api<{branch: {id: string}}>('POST', `/projects/${projectId}/branches`, {
      branch: {},
    });
    await operationsOver(cell);
    await cell.api('DELETE', `/projects/${projectId}/branches/${made.id}?hard_delete=true`);
    await operationsOver(cell);
  } catch {
    // a safekeeper died meanwhile: that is what this is for; the operation goes on
    await sleep(200);
  }
};

/**
 * Safekeeper 3 gets WAL that nobody else has, with a segment of its own, and never sees it committed; another compute goes on
 * without it. When it comes back it must cut its tail.
 */
const divergence: Driver = async (stage) => {
  const {cell, endpointId, tenant, timeline, admin, hasFired} = stage;
  const links = safekeeperNames.map((name) => cell.links.get(name)!);
  // Up to just before the end of a segment, all of it committed …
  await admin(`select pg_logical_emit_message(true, 'crash-matrix', repeat('x',
    (16777216 - 300000 - (pg_current_wal_lsn() - '0/0'::pg_lsn) % 16777216)::int))
    where (pg_current_wal_lsn() - '0/0'::pg_lsn) % 16777216 < 16777216 - 300000`);
  for (const l of links.slice(0, 2)) l.set({hold: 'up'});
  // … and then across it, for safekeeper 3 alone. Nobody waits for a quorum here; the WAL is written all the same.
  await admin("select pg_logical_emit_message(false, 'crash-matrix', repeat('y', 900000))");
  await inTheEnd(async () => {
    // Not its flush LSN: that is the end of the last record that is there whole.
    const next = Math.floor(parseLsn((await third(stage)).commitLsn) / walSegmentSizeDefault) + 1;
    return existsSync(
      join(cell.layout.node('safekeeper-3'), tenant, timeline, segmentFileName(1, next, walSegmentSizeDefault)),
    );
  });
  links[2]!.set({hold: 'both'});
  const c = cell.compute(endpointId);
  for (const pid of [c.agent, c.proposer, c.postgres]) kill(pid);
  for (const l of links.slice(0, 2)) l.healThenReset();
  await inTheEnd(async () => {
    await cell.query("select pg_logical_emit_message(true, 'crash-matrix', 'committed')");
    return true;
  }, 120_000);
  const [first] = await safekeeperStatus(cell, tenant, timeline);
  links[2]!.healThenReset();
  // What was committed without it comes behind the cut.
  const wanted = parseLsn(first?.commitLsn ?? 'FFFFFFFF/0');
  await inTheEnd(async () => hasFired() || parseLsn((await third(stage)).commitLsn) >= wanted);
};

const third = async ({cell, tenant, timeline}: Stage) =>
  (await safekeeperStatus(cell, tenant, timeline, ['safekeeper-3']))[0]!;
/** Or not: then the driver has another try. */
const inTheEnd = (condition: () => Promise<boolean>, msMax = 30_000): Promise<unknown> =>
  until('', condition, msMax).catch(() => {});

/** Segments are archived once a newer one is begun and the pageserver has taken them in; then they may leave the disk. */
const archive: Driver = async (stage) => {
  await newSegment(stage);
  await checkpoint(stage);
};

/** The pageserver writes down what it holds. */
const checkpoint: Driver = async ({cell, tenant, timeline, hasFired}) => {
  await requestJson({
    method: 'POST',
    url: `${cell.urlOf('pageserver-http')}/v1/tenant/${tenant}/timeline/${timeline}/checkpoint`,
    token: await cell.token('pageserver'),
    timeoutMs: 20_000,
  }).catch(() => {});
  for (let waited = 0; waited < 1000 && !hasFired(); waited += 100) await sleep(100);
};

/** A branch is cut off from its parent, and goes. */
const leavingBranch: Driver = async ({cell, tenant, timeline}) => {
  const token = await cell.token('pageserver');
  const base = `${cell.urlOf('pageserver-http')}/v1/tenant/${tenant}`;
  try {
    const path = `/projects/${cell.projectId}/branches`;
    const {branch: made} = await cell.api<{branch: {id: string}}>('POST', path, {branch: {}});
    await operationsOver(cell);
    const {json} = await requestJson({method: 'GET', url: base, token, timeoutMs: 30_000});
    for (const {timelineId} of (json as {timelines: {timelineId: string}[]}).timelines) {
      const url = `${base}/timeline/${timelineId}/detach_ancestor`;
      if (timelineId !== timeline) await requestJson({method: 'POST', url, token, timeoutMs: 30_000});
    }
    await cell.api('DELETE', `${path}/${made.id}?hard_delete=true`);
    await operationsOver(cell);
  } catch {
    await sleep(200);
  }
};

/** The tenant leaves the pageserver and comes back. */
const moveAway: Driver = async ({cell, tenant}) => {
  const token = await cell.token('pageserver');
  const url = `${cell.urlOf('pageserver-http')}/v1/tenant/${tenant}`;
  const ask = (method: string, body?: unknown): ReturnType<typeof requestJson> =>
    requestJson({method, url, token, timeoutMs: 20_000, ...(body === undefined ? {} : {body})});
  try {
    const {generation} = (await ask('GET')).json as {generation: number};
    await ask('DELETE');
    await ask('PUT', {generation});
  } catch {
    await sleep(200);
  }
};

/** A branch without a compute is archived, woken, and goes. */
const sleepingBranch: Driver = async ({cell, tenant, timeline}) => {
  const token = await cell.token('pageserver');
  const base = `${cell.urlOf('pageserver-http')}/v1/tenant/${tenant}`;
  const ask = (method: string, path: string, body?: unknown): ReturnType<typeof requestJson> =>
    requestJson({method, url: base + path, token, timeoutMs: 30_000, ...(body === undefined ? {} : {body})});
  try {
    const path = `/projects/${cell.projectId}/branches`;
    const {branch: made} = await cell.api<{branch: {id: string}}>('POST', path, {branch: {}});
    await operationsOver(cell);
    const {timelines} = (await ask('GET', '')).json as {timelines: {timelineId: string; lastRecordLsn: string}[]};
    for (const {timelineId, lastRecordLsn} of timelines) {
      if (timelineId === timeline) continue;
      await ask('POST', `/timeline/${timelineId}/archive`, {lsn: lastRecordLsn});
      await ask('POST', `/timeline/${timelineId}/unarchive`);
    }
    await cell.api('DELETE', `${path}/${made.id}?hard_delete=true`);
    await operationsOver(cell);
  } catch {
    await sleep(200);
  }
};

/** WAL that nobody needs leaves the object store. */
const trim: Driver = async (stage) => {
  const {cell, tenant, timeline, hasFired} = stage;
  await archive(stage);
  if (hasFired()) return;
  try {
    const url = (node: string, rest = ''): string =>
      `${cell.urlOf(`${node}-http`)}/v1/tenant/${tenant}/timeline/${timeline}${rest}`;
    const pageserver = await cell.token('pageserver');
    const {json} = await requestJson({method: 'GET', url: url('pageserver'), token: pageserver, timeoutMs: 5000});
    const body = {lsn: (json as {remoteConsistentLsn: string}).remoteConsistentLsn};
    const token = await cell.token('safekeeper');
    for (const node of safekeeperNames)
      await requestJson({method: 'POST', url: url(node, '/archive/trim'), token, body, timeoutMs: 5000}).catch(
        () => {},
      );
  } catch {
    await sleep(200);
  }
};

/** A layer that no index names: what an older attachment has left. */
const stray: Driver = async ({cell, tenant, timeline, hasFired}) => {
  const name = layerName('delta', 8 as Lsn, 16 as Lsn, systemRandom.uint32(), 1);
  await objectsOf(cell).put(timelinePrefix(tenant, timeline) + name, Buffer.from('x'));
  for (let waited = 0; waited < 10_000 && !hasFired(); waited += 100) await sleep(100);
};

/** The timeline that `restored` is about; the end of its last whole record. */
const lost = {timelineId: '', endLsn: makeWal(walStart, [100, 5000]).endLsn};

/** A timeline that is only in the archive, with half a record at its end, is restored at safekeeper 4, and deleted. */
const restored: Driver = async (stage) => {
  const {cell, tenant, hasFired} = stage;
  lost.timelineId = newId(systemRandom);
  const {timelineId} = lost;
  const archive = new WalArchive({store: objectsOf(cell), tenantId: tenant, timelineId});
  const history = [0, 1].map((term) => ({term, lsn: walStart}));
  await archive.putManifest({
    tenantId: tenant,
    timelineId,
    systemId: '7',
    pgVersion: 150_000,
    startLsn: walStart,
    history,
  });
  const {bytes, endLsn} = makeWal(walStart, [100, 5000, 300]);
  const segment = Math.floor(walStart / walSegmentSizeDefault);
  const piece = {segment, startLsn: walStart, endLsn: (endLsn - 100) as Lsn, partialTerm: 1};
  await archive.put(piece, Buffer.concat([bytes.subarray(0, -100), Buffer.alloc(walFooterBytes)]));
  await restore(stage).catch(() => {});
  if (!hasFired()) await deleteRestored(stage).catch(() => {});
};

const askSpare = async ({cell, tenant}: Stage, method: string, path: string, body?: unknown) => {
  const token = await cell.token('safekeeper');
  const url = `${cell.urlOf('safekeeper-4-http')}/v1/tenant/${tenant}/timeline/${lost.timelineId}${path}`;
  const request = {method, url, token, timeoutMs: 30_000, ...(body === undefined ? {} : {body})};
  const {status, json} = await requestJson(request);
  return {status, json: (json ?? {}) as {lsn?: string}};
};
const restore = (stage: Stage) => {
  const {host, port} = stage.cell.addressOf('safekeeper-4');
  const membership = {generation: 1, members: [{nodeId: 4, host, port}], newMembers: []};
  return askSpare(stage, 'POST', '/restore_from_archive', {membership});
};
const deleteRestored = (stage: Stage) => askSpare(stage, 'DELETE', '?archive=delete');

/** Asked again, the restore ends where it would have ended, or the deletion does. */
const restoredAfter = async (stage: Stage): Promise<string[]> => {
  const problems: string[] = [];
  const {status, json} = await restore(stage);
  if (status < 300 ? json.lsn !== formatLsn(lost.endLsn) : status !== 410)
    problems.push(`the restore asked for again: ${status} ${JSON.stringify(json).slice(0, 200)}`);
  const deleted = await deleteRestored(stage);
  if (deleted.status !== 200) problems.push(`the deletion asked for again: ${deleted.status}`);
  const left = await objectsOf(stage.cell).list(`wal/${stage.tenant}/${lost.timelineId}/`);
  if (left.length > 0) problems.push(`${left.length} objects of a deleted timeline are left`);
  return problems;
};

function objectsOf({layout}: Cell): FolderObjectStore {
  return new FolderObjectStore({root: layout.objects, disk: systemDisk, random: systemRandom, nowMs: Date.now()});
}

/** Safekeeper 4, which is no member, copies the timeline, and lets go of it again. */
const copy: Driver = async ({cell, tenant, timeline, hasFired}) => {
  const token = await cell.token('safekeeper');
  const base = (node: string): string => `${cell.urlOf(`${node}-http`)}/v1/tenant/${tenant}/timeline/${timeline}`;
  try {
    const {json} = await requestJson({method: 'GET', url: base('safekeeper-1'), token, timeoutMs: 5000});
    const {membership} = json as {membership: {members: unknown[]}};
    const post = (what: string, body: unknown): Promise<unknown> =>
      requestJson({method: 'POST', url: `${base('safekeeper-4')}/${what}`, token, body, timeoutMs: 30_000});
    await post('pull', {membership, from: membership.members});
    if (!hasFired()) await post('exclude', {membership});
  } catch {
    await sleep(200);
  }
};

const everySafekeeper = 'safekeeper-2';

export const rows: Readonly<Record<string, Row>> = {
  // The atomic replacement of a file, as the safekeeper's control file.
  'disk.replace-write.before': {driver: election, process: everySafekeeper},
  // A failing fsync of the control file, and of WAL: the node must stop, and never call it good at a second try.
  'disk.replace-write.after': {driver: election, process: everySafekeeper, fails: true},
  'disk.fdatasync.before': {driver: load, process: everySafekeeper, fails: true, short: true},
  'disk.replace-fsync.after': {driver: election, process: everySafekeeper, short: true},
  'disk.replace-rename.after': {driver: election, process: everySafekeeper, short: true},
  'disk.replace-directory-sync.after': {driver: election, process: everySafekeeper},

  'safekeeper.write.before': {driver: load},
  'safekeeper.write.after': {driver: load, short: true},
  'safekeeper.sync.before': {driver: load},
  'safekeeper.sync.after': {driver: load, short: true},
  'safekeeper.mark.before': {driver: load},
  'safekeeper.mark.after': {driver: load},
  'safekeeper.acknowledge.after': {driver: load},
  'safekeeper.save.before': {driver: election},
  'safekeeper.save.after': {driver: election},
  'safekeeper.segment-create.before': {driver: newSegment},
  'safekeeper.segment-create.after': {driver: newSegment, short: true},
  'safekeeper.segment-directory-sync.after': {driver: newSegment},
  'safekeeper.truncate.before': {driver: divergence},
  'safekeeper.mark-lower.after': {driver: divergence},
  'safekeeper.truncate.after': {driver: divergence, short: true},
  'safekeeper.cut-remove.before': {driver: divergence},
  'safekeeper.cut-remove.after': {driver: divergence, short: true},
  'safekeeper.cut-directory-sync.after': {driver: divergence},
  'safekeeper.cut-zeros.before': {driver: divergence},
  'safekeeper.cut-zeros.after': {driver: divergence},
  'safekeeper.cut-sync.before': {driver: divergence},
  'safekeeper.cut-sync.after': {driver: divergence},
  'safekeeper.create.before': {driver: branch},
  'safekeeper.create-directory.after': {driver: branch},
  'safekeeper.create-control-file.after': {driver: branch, short: true},
  'safekeeper.create.after': {driver: branch},
  'safekeeper.delete-mark.before': {driver: branch},
  'safekeeper.delete-mark.after': {driver: branch, short: true},
  'safekeeper.delete-files.after': {driver: branch},
  'safekeeper.archive-manifest.before': {driver: archive},
  'safekeeper.archive-manifest.after': {driver: archive},
  'safekeeper.archive-put.before': {driver: archive},
  'safekeeper.archive-put.after': {driver: archive, short: true},
  'safekeeper.archive-record.before': {driver: archive},
  'safekeeper.archive-record.after': {driver: archive},
  'safekeeper.forget-parts.before': {driver: archive},
  'safekeeper.forget-parts.after': {driver: archive},
  'safekeeper.archive-delete.before': {driver: branch},
  'safekeeper.archive-delete.after': {driver: branch},
  'safekeeper.archive-cut-put.before': {driver: restored, after: restoredAfter},
  'safekeeper.archive-cut-put.after': {driver: restored, after: restoredAfter},
  'safekeeper.archive-cut.after': {driver: restored, after: restoredAfter},
  'safekeeper.restore.before': {driver: restored, after: restoredAfter},
  'safekeeper.restore.after': {driver: restored, after: restoredAfter},
  'safekeeper.trim-mark.before': {driver: trim},
  'safekeeper.trim-mark.after': {driver: trim},
  'safekeeper.trim.after': {driver: trim},
  'safekeeper.drop.before': {driver: archive},
  'safekeeper.drop.after': {driver: archive},
  'safekeeper.pull.before': {driver: copy},
  'safekeeper.pull-wal.after': {driver: copy},
  'safekeeper.pull-rename.before': {driver: copy},
  'safekeeper.pull-rename.after': {driver: copy},
  'safekeeper.pull.after': {driver: copy},
  'safekeeper.exclude-mark.before': {driver: copy},
  'safekeeper.exclude-mark.after': {driver: copy},
  'safekeeper.exclude-rename.after': {driver: copy},

  'proposer.send-greeting.before': {driver: election},
  'proposer.receive-greeting-response.before': {driver: election},
  'proposer.send-vote-request.before': {driver: election},
  'proposer.receive-vote-response.before': {driver: election},
  'proposer.send-elected.before': {driver: election, short: true},
  'proposer.receive-elected-response.before': {driver: election},
  'proposer.elected.before': {driver: election},
  'proposer.elected.after': {driver: election},
  'proposer.send-append.before': {driver: load},
  'proposer.receive-append-response.before': {driver: load},
  'proposer.acknowledge.before': {driver: load, short: true},

  'pageserver.attach.before': {driver: moveAway},
  'pageserver.attach.after': {driver: moveAway},
  'pageserver.detach.before': {driver: moveAway},
  'pageserver.detach.after': {driver: moveAway},
  'pageserver.upload.layer.before': {driver: checkpoint},
  'pageserver.upload.layer.after': {driver: checkpoint, short: true},
  'pageserver.upload.index.before': {driver: checkpoint},
  'pageserver.upload.index.after': {driver: checkpoint},
  'pageserver.compaction.upload.before': {driver: checkpoint},
  'pageserver.compaction.upload.after': {driver: checkpoint},
  'pageserver.compaction.install.before': {driver: checkpoint},
  'pageserver.delete.before': {driver: checkpoint},
  'pageserver.delete.after': {driver: checkpoint},
  'pageserver.erase.before': {driver: branch},
  'pageserver.erase.layers.after': {driver: branch},
  'pageserver.erase.after': {driver: branch},
  'pageserver.sweep.before': {driver: stray},
  'pageserver.sweep.after': {driver: stray},
  'pageserver.gc.before': {driver: checkpoint},
  'pageserver.detach.step.before': {driver: leavingBranch},
  'pageserver.detach.index.before': {driver: leavingBranch},
  'pageserver.detach.index.after': {driver: leavingBranch},
  'pageserver.archive.index.before': {driver: sleepingBranch},
  'pageserver.archive.index.after': {driver: sleepingBranch},
  'pageserver.archive.mark.before': {driver: sleepingBranch},
  'pageserver.archive.mark.after': {driver: sleepingBranch},
  'pageserver.unarchive.index.before': {driver: sleepingBranch},
  'pageserver.unarchive.index.after': {driver: sleepingBranch},
};

/** Roles whose steps are walked. Others' failpoints are their owners' tests'. */
export const walkedRoles: readonly string[] = ['disk', 'safekeeper', 'proposer', 'pageserver'];

function kill(pid: number | undefined): void {
  try {
    if (pid !== undefined) process.kill(pid, 'SIGKILL');
  } catch {
    // gone by itself
  }
}

async function operationsOver(cell: Cell): Promise<void> {
  for (let waited = 0; waited < 20_000; waited += 100) {
    const {operations} = await cell.api<{operations: {status: string}[]}>(
      'GET',
      `/projects/${cell.projectId}/operations?limit=100`,
    );
    if (operations.every((o) => ['finished', 'skipped', 'cancelled', 'failed'].includes(o.status))) return;
    await sleep(100);
  }
}
