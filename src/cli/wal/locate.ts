/** Finds what a person means: a folder with WAL, or a branch of the installation with its ancestors. */
import type {Lsn} from '#postgres/lsn.ts';
import {systemClock} from '#runtime/clock.ts';
import {joinPath, systemDisk} from '#runtime/disk.ts';
import {createLog} from '#runtime/log.ts';
import {systemRandom} from '#runtime/random.ts';
import {openSqlite} from '#runtime/sqlite.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {type ObjectStoreConfig, openObjectStore} from '#objectstore/open.ts';
import {WalArchive} from '#objectstore/wal-archive.ts';
import {UsageError} from '#cli/arguments.ts';
import type {Layout} from '#cli/layout.ts';
import {ArchiveSource, FolderSource, JoinedSource, type WalSource} from '#cli/wal/wal-source.ts';

/** One timeline of a branch's history. */
export interface TimelineWal {
  /** For messages. */
  readonly name: string;
  /** Of the safekeepers on this machine, furthest commit first. */
  readonly folders: readonly FolderSource[];
  readonly archive: ArchiveSource | undefined;
  /** The history goes on in a younger timeline from here; undefined: it is the branch itself. */
  readonly endLsn: Lsn | undefined;
}

interface BranchRow {
  readonly id: string;
  readonly name: string;
  readonly timeline_id: string;
  readonly parent_id: string | null;
  readonly parent_lsn: number | null;
  readonly tenant_id: string;
}

/** Oldest timeline first. Throws UsageError when `where` is neither a folder with WAL nor a branch. */
export async function locateWal(where: string, layout: Layout): Promise<TimelineWal[]> {
  if (systemDisk.stat(where)?.isDirectory === true) {
    const folder = FolderSource.find(systemDisk, where);
    if (folder === undefined) throw new UsageError(`${where} has neither WAL segments nor a safekeeper's control file`);
    return [{name: where, folders: [folder], archive: undefined, endLsn: undefined}];
  }
  const history = branchHistory(where, layout);
  const store = storeOf(layout);
  const found: TimelineWal[] = [];
  for (const [i, {row, endLsn}] of history.entries()) {
    const archive = new WalArchive({store, tenantId: row.tenant_id, timelineId: row.timeline_id});
    found.unshift({
      name: `${i === 0 ? 'branch' : 'ancestor'} ${row.id} (${row.name}), timeline ${row.timeline_id}`,
      folders: safekeeperFolders(layout, row),
      archive: await ArchiveSource.find(archive),
      endLsn,
    });
  }
  return found;
}

/** Undefined: there is no WAL of it at all. */
export function joined({name, folders, archive, endLsn}: TimelineWal): WalSource | undefined {
  const sources = [...folders, ...(archive === undefined ? [] : [archive])];
  return sources.length === 0 ? undefined : new JoinedSource(name, sources, endLsn);
}

function branchHistory(where: string, layout: Layout): {row: BranchRow; endLsn: Lsn | undefined}[] {
  if (!systemDisk.exists(layout.database))
    throw new UsageError(`${where} is no folder, and there is no installation in ${layout.data} (--data DIR)`);
  const database = openSqlite(layout.database);
  try {
    const select =
      'select b.id, b.name, b.timeline_id, b.parent_id, b.parent_lsn, p.tenant_id from branches b ' +
      'join projects p on p.id = b.project_id where ';
    const rows = database
      .prepare(`${select} b.id = ? or b.timeline_id = ? or (b.name = ? and b.deleted_at is null)`)
      .all([where, where, where]) as BranchRow[];
    if (rows.length === 0) throw new UsageError(`there is no folder and no branch ${where}`);
    if (rows.length > 1)
      throw new UsageError(`${where} names several branches; say which: ${rows.map((row) => row.id).join(', ')}`);
    const history: {row: BranchRow; endLsn: Lsn | undefined}[] = [{row: rows[0]!, endLsn: undefined}];
    for (let row = rows[0]!; row.parent_id !== null && row.parent_lsn !== null;) {
      const [parent] = database.prepare(`${select} b.id = ?`).all([row.parent_id]) as BranchRow[];
      if (parent === undefined) break;
      history.push({row: parent, endLsn: row.parent_lsn as Lsn});
      row = parent;
    }
    return history;
  } finally {
    database.close();
  }
}

function safekeeperFolders(layout: Layout, row: BranchRow): FolderSource[] {
  return systemDisk
    .list(layout.data)
    .filter((name) => name.startsWith('safekeeper-'))
    .map((name) => joinPath(layout.data, name, row.tenant_id, row.timeline_id))
    .filter((folder) => systemDisk.exists(folder))
    .map((folder) => FolderSource.find(systemDisk, folder))
    .filter((folder) => folder !== undefined)
    .sort((a, b) => (b.state?.commitLsn ?? 0) - (a.state?.commitLsn ?? 0));
}

/** The installation's object store. */
export function storeOf(layout: Layout): ObjectStore {
  const file = joinPath(layout.data, 'object-store.json');
  return openStore(
    systemDisk.exists(file)
      ? (JSON.parse(systemDisk.readFile(file).toString('utf8')) as ObjectStoreConfig)
      : {kind: 'folder', root: layout.objects},
  );
}

export function openStore(config: ObjectStoreConfig): ObjectStore {
  const log = createLog({component: 'cli'});
  return openObjectStore(config, {clock: systemClock, random: systemRandom, disk: systemDisk, log});
}
