/*
 * hydrate.c - local files and their pages.
 *
 * A file appears at its right size in one step: higher segments first, segment 0 under another name, then renamed. A
 * page is written into it by whoever fetched it, under the block lock, when the local one is still new (pd_upper = 0).
 * Order of locks: file lock or block lock, then the table lock of base.c; never two of one kind.
 */
#include "pagoda.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/parallel.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xlogutils.h"
#include "catalog/catalog.h"
#include "catalog/pg_database.h"
#include "catalog/pg_tablespace.h"
#include "common/file_perm.h"
#include "common/relpath.h"
#include "miscadmin.h"
#include "storage/bufpage.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "storage/md.h"
#include "utils/memutils.h"

/* Bytes whose presence makes a page not new; written last (store_run). */
#define HEADER_BYTES SizeOfPageHeaderData

/* A miss this near behind the last fetch belongs to the same sequential read: some blocks in between were local. */
#define SEQUENTIAL_GAP 8

/* One backend's buffers: fetched pages and their local versions. */
static char *fetched = NULL;
static char *present = NULL;
static int	buffer_pages = 0;

static int	fetch_and_store(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count, const AheadRange *ahead, int nahead);
static pg_noinline int choose_ahead(BaseRelation *relation, ForkNumber fork, BlockNumber block, AheadRange *ahead);
static bool is_hole(int fd, off_t position, off_t length);
static bool miss_is_likely(const BaseRelation *relation, ForkNumber fork, BlockNumber block);
static bool read_local(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer);
static int	hole_blocks(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count);
static int	choose_count(BaseRelation *relation, ForkNumber fork, BlockNumber block);
static void store_pages(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count);
static void store_run(int fd, const char *path, off_t position, char *pages, int count);
static void segment_path(char *path, RelFileNode rnode, ForkNumber fork, BlockNumber block);
static bool local_file_exists(RelFileNode rnode, ForkNumber fork);
static void create_local_file(RelFileNode rnode, ForkNumber fork, BlockNumber nblocks, const char *pages);
static void create_segment(const char *path, off_t size, const char *pages, bool rename_into_place);
static void make_directories(RelFileNode rnode);
static char *read_init_fork(RelFileNode rnode, BlockNumber nblocks);
static List *all_databases(void);
static void hydrate_all_pages(RelFileNode rnode, ForkNumber fork);
static bool range_is_local(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count);
static void need_buffers(int pages);

void
hydrate_read(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer)
{
	RelFileNode rnode = reln->smgr_rnode.node;
	BaseRelation *relation = base_lookup(rnode);
	volatile int stored = 0;
	int			count;
	AheadRange	ahead[PAGODA_AHEAD_MAX];
	int			nahead = 0;

	if (relation->nblocks[fork] == BASE_ABSENT || block >= relation->nblocks[fork])
	{
		mdread(reln, fork, block, buffer);
		metrics_local_read();
		return;
	}

	/*
	 * At the end of the last fetch a miss is likely. Reading a hole would have the kernel read ahead in it, and from then on fill
	 * its cache with zeros ahead of what is stored here, which costs half of the time of a scan; so it is looked at first.
	 */
	if (!(miss_is_likely(relation, fork, block) && hole_blocks(rnode, fork, block, 1) == 1) &&
		read_local(reln, fork, block, buffer))
	{
		metrics_local_read();
		return;
	}

	/* PostgreSQL's own hints know better what comes next than we do. */
	if (agent_hinted(rnode, fork, block))
		count = 1;
	else
	{
		count = choose_count(relation, fork, block);
		if (count > 1)
			count = Max(1, hole_blocks(rnode, fork, block, count));
		nahead = choose_ahead(relation, fork, block + count, ahead);
	}
	if (!flight_begin(rnode, fork, block, &count) && read_local(reln, fork, block, buffer))
		return;					/* somebody was fetching it */
	if (count < 1)
	{
		/* The base was cut off right here since we looked: then the block is local only, else it is one block. */
		if (block >= relation->nblocks[fork])
		{
			flight_end();
			mdread(reln, fork, block, buffer);
			metrics_local_read();
			return;
		}
		count = 1;
	}

	PG_TRY();
	{
		stored = fetch_and_store(rnode, fork, block, count, ahead, nahead);
	}
	PG_FINALLY();
	{
		flight_end();
	}
	PG_END_TRY();

	relation->next[fork] = block + stored;

	/* Fetched, unless somebody else was quicker and has changed it since. */
	if (stored == 0)
		mdread(reln, fork, block, buffer);
	else
		memcpy(buffer, PageIsNew((Page) present) ? fetched : present, BLCKSZ);
}

bool
hydrate_prefetch(RelFileNode rnode, ForkNumber fork, BlockNumber block)
{
	BaseRelation *relation = base_lookup_known(rnode);

	if (relation == NULL || relation->nblocks[fork] == BASE_ABSENT || block >= relation->nblocks[fork] ||
		hole_blocks(rnode, fork, block, 1) == 0)
		return false;
	agent_prefetch(rnode, fork, block, 1);
	return true;
}

bool
hydrate_fork(RelFileNode rnode, ForkNumber fork)
{
	BaseRelation *relation;
	LWLock	   *lock;
	BlockNumber init_nblocks;
	char	   *init_pages = NULL;

	if (local_file_exists(rnode, fork))
		return true;
	relation = base_lookup(rnode);
	init_nblocks = relation->nblocks[INIT_FORKNUM];

	/*
	 * An unlogged relation: the base has its init fork only. Both files are made whole, since reinit.c finds and copies
	 * them without the storage manager when Postgres restarts after a crash.
	 */
	if (init_nblocks != BASE_ABSENT && (fork == INIT_FORKNUM || relation->nblocks[fork] == BASE_ABSENT))
	{
		if (fork != INIT_FORKNUM && fork != MAIN_FORKNUM)
			return false;
		init_pages = read_init_fork(rnode, init_nblocks);
	}
	else if (relation->nblocks[fork] == BASE_ABSENT)
		return false;

	lock = base_file_lock(rnode);
	LWLockAcquire(lock, LW_EXCLUSIVE);
	relation = base_lookup_known(rnode);
	if (relation == NULL || relation->dropped)
	{
		LWLockRelease(lock);
		return false;
	}
	if (init_pages != NULL)
	{
		if (!local_file_exists(rnode, INIT_FORKNUM))
			create_local_file(rnode, INIT_FORKNUM, init_nblocks, init_pages);
		if (relation->nblocks[MAIN_FORKNUM] == BASE_ABSENT && !local_file_exists(rnode, MAIN_FORKNUM))
			create_local_file(rnode, MAIN_FORKNUM, init_nblocks, init_pages);
		pfree(init_pages);
	}
	else if (relation->nblocks[fork] != BASE_ABSENT && !local_file_exists(rnode, fork))
		create_local_file(rnode, fork, relation->nblocks[fork], NULL);
	LWLockRelease(lock);
	return local_file_exists(rnode, fork);
}

void
hydrate_database(Oid spc, Oid db, bool pages)
{
	int			count;
	AgentListEntry *entries = agent_list(spc, db, &count);

	for (int i = 0; i < count; i++)
	{
		RelFileNode rnode = {entries[i].spc, entries[i].db, entries[i].rel};

		CHECK_FOR_INTERRUPTS();
		if (entries[i].fork >= PAGODA_FORKS || !hydrate_fork(rnode, entries[i].fork))
			continue;
		if (entries[i].fork == INIT_FORKNUM)
			hydrate_fork(rnode, MAIN_FORKNUM);
		else if (pages)
			hydrate_all_pages(rnode, entries[i].fork);
	}
	if (entries != NULL)
		pfree(entries);
}

/*
 * A tablespace made before this compute started has no directory or symbolic link here: it becomes a plain directory in
 * pg_tblspc, as PostgreSQL's own in-place tablespaces are.
 */
void
hydrate_tablespace_directory(Oid spc)
{
	char		path[MAXPGPATH];
	struct stat status;

	if (spc == DEFAULTTABLESPACE_OID || spc == GLOBALTABLESPACE_OID || base_tablespace_seen(spc, false))
		return;

	/* Once seen, a directory that is missing was removed by DROP TABLESPACE, which holds this lock meanwhile. */
	LWLockAcquire(TablespaceCreateLock, LW_EXCLUSIVE);
	snprintf(path, sizeof(path), "pg_tblspc/%u/%s", spc, TABLESPACE_VERSION_DIRECTORY);
	if (!base_tablespace_seen(spc, false) && stat(path, &status) != 0)
	{
		snprintf(path, sizeof(path), "pg_tblspc/%u", spc);
		if (lstat(path, &status) != 0)
			(void) MakePGDirectory(path);
		snprintf(path, sizeof(path), "pg_tblspc/%u/%s", spc, TABLESPACE_VERSION_DIRECTORY);
		if (MakePGDirectory(path) != 0 && errno != EEXIST)
			ereport(ERROR,
					(errcode_for_file_access(), errmsg("could not create directory \"%s\": %m", path)));
	}
	base_tablespace_seen(spc, true);
	LWLockRelease(TablespaceCreateLock);
}

void
hydrate_all_tablespace_directories(void)
{
	Relation	catalog = table_open(TableSpaceRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(catalog, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		hydrate_tablespace_directory(((Form_pg_tablespace) GETSTRUCT(tuple))->oid);
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

void
hydrate_tablespace_files(Oid spc)
{
	List	   *databases = all_databases();
	ListCell   *cell;

	foreach(cell, databases)
		hydrate_database(spc, lfirst_oid(cell), false);
	list_free(databases);
}

int64
hydrate_missing_tablespace_bytes(Oid spc)
{
	List	   *databases;
	ListCell   *cell;
	int64		bytes = 0;

	if (spc == GLOBALTABLESPACE_OID)
		return hydrate_missing_bytes(spc, InvalidOid);
	databases = all_databases();
	foreach(cell, databases)
		bytes += hydrate_missing_bytes(spc, lfirst_oid(cell));
	list_free(databases);
	return bytes;
}

int64
hydrate_missing_bytes(Oid spc, Oid db)
{
	int			count;
	AgentListEntry *entries = agent_list(spc, db, &count);
	int64		bytes = 0;

	for (int i = 0; i < count; i++)
	{
		RelFileNode rnode = {entries[i].spc, entries[i].db, entries[i].rel};
		BaseRelation *known;

		CHECK_FOR_INTERRUPTS();
		if (entries[i].fork >= PAGODA_FORKS || local_file_exists(rnode, entries[i].fork))
			continue;
		known = base_lookup_known(rnode);
		if (known == NULL)
			bytes += (int64) entries[i].nblocks * BLCKSZ;
		else if (known->nblocks[entries[i].fork] != BASE_ABSENT)
			bytes += (int64) known->nblocks[entries[i].fork] * BLCKSZ;
		else
			continue;

		/* The main fork of an unlogged relation is made from its init fork. */
		if (entries[i].fork == INIT_FORKNUM && !local_file_exists(rnode, MAIN_FORKNUM))
			bytes += (int64) entries[i].nblocks * BLCKSZ;
	}
	if (entries != NULL)
		pfree(entries);
	return bytes;
}

int64
hydrate_fork_bytes(RelFileNode rnode, BackendId backend, ForkNumber fork)
{
	char	   *first = relpathbackend(rnode, backend, fork);
	int64		bytes = 0;
	BaseRelation *relation;

	for (unsigned segment = 0;; segment++)
	{
		char		path[MAXPGPATH];
		struct stat status;

		CHECK_FOR_INTERRUPTS();
		if (segment == 0)
			strlcpy(path, first, sizeof(path));
		else
			snprintf(path, sizeof(path), "%s.%u", first, segment);
		if (stat(path, &status) != 0)
		{
			if (errno != ENOENT)
				ereport(ERROR,
						(errcode_for_file_access(), errmsg("could not stat file \"%s\": %m", path)));
			if (segment > 0)
				return bytes;
			break;
		}
		bytes += status.st_size;
	}

	/* Not local. */
	if (backend != InvalidBackendId || !OidIsValid(rnode.relNode))
		return 0;
	relation = base_lookup(rnode);
	if (relation->nblocks[fork] != BASE_ABSENT)
		return (int64) relation->nblocks[fork] * BLCKSZ;
	if (fork == MAIN_FORKNUM && relation->nblocks[INIT_FORKNUM] != BASE_ABSENT)
		return (int64) relation->nblocks[INIT_FORKNUM] * BLCKSZ;
	return 0;
}

static bool
miss_is_likely(const BaseRelation *relation, ForkNumber fork, BlockNumber block)
{
	return relation->next[fork] == InvalidBlockNumber || block == relation->next[fork];
}

/* Reads the local version under the shared block lock. False when it is new: not fetched yet. */
static bool
read_local(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer)
{
	LWLock	   *lock = base_block_lock(reln->smgr_rnode.node, fork, block);

	LWLockAcquire(lock, LW_SHARED);
	mdread(reln, fork, block, buffer);
	LWLockRelease(lock);
	return !PageIsNew((Page) buffer);
}

/*
 * How many of `count` blocks from `block` on lie in one hole of the file: those are not local. Only a hint: on a file system
 * that does not know holes there are none.
 */
static int
hole_blocks(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count)
{
	char		path[MAXPGPATH];
	off_t		position = (off_t) (block % RELSEG_SIZE) * BLCKSZ;
	off_t		data;
	int			fd;

	segment_path(path, rnode, fork, block);
	fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0)
		return 0;
	data = lseek(fd, position, SEEK_DATA);
	if (data < 0 && errno == ENXIO)
		data = position + (off_t) count * BLCKSZ;	/* no data up to the end of the file */
	CloseTransientFile(fd);
	return data < position ? 0 : (int) Min((data - position) / BLCKSZ, count);
}

/*
 * Fetches `count` pages from `block` on without any lock, then writes those that are still new locally. Returns how many
 * pages it had (0: the relation was dropped or truncated meanwhile); `fetched` then holds the base versions, `present`
 * the local ones as they were before.
 */
static int
fetch_and_store(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count, const AheadRange *ahead, int nahead)
{
	LWLock	   *lock = base_block_lock(rnode, fork, block);
	BaseRelation *relation;
	int			arrived;

	need_buffers(count);
	arrived = agent_get_pages(rnode, fork, block, count, fetched, ahead, nahead);

	LWLockAcquire(lock, LW_EXCLUSIVE);
	relation = base_lookup_known(rnode);
	if (relation == NULL || relation->nblocks[fork] == BASE_ABSENT || block >= relation->nblocks[fork])
		arrived = 0;
	else
		arrived = Min((BlockNumber) arrived, relation->nblocks[fork] - block);
	if (arrived > 0)
		store_pages(rnode, fork, block, arrived);
	LWLockRelease(lock);
	return arrived;
}

/*
 * A reader at full speed asks for the next ranges before it has the present one. Not in parallel queries, whose workers read
 * each other's next ranges. Returns how many there are in `ahead`. (Inlined, its variables would be the ones of a caller that
 * catches errors by longjmp.)
 */
static pg_noinline int
choose_ahead(BaseRelation *relation, ForkNumber fork, BlockNumber block, AheadRange *ahead)
{
	int			chosen = 0;

	if (relation->window[fork] < pagoda_readahead_max || pagoda_readahead_max == 1 ||
		IsParallelWorker() || ParallelContextActive())
		return 0;
	while (chosen < PAGODA_AHEAD_MAX && block < relation->nblocks[fork])
	{
		int			count = Min(pagoda_readahead_max, (int) (PAGODA_LOCK_SPAN - block % PAGODA_LOCK_SPAN));

		count = Min((BlockNumber) count, relation->nblocks[fork] - block);
		count = hole_blocks(relation->rnode, fork, block, count);
		if (count == 0)
			break;
		ahead[chosen].block = block;
		ahead[chosen++].count = count;
		block += count;
	}
	return chosen;
}

/*
 * One page for a random miss, four times as many for each further miss near the end of the last fetch. The range stays
 * within one block lock.
 */
static int
choose_count(BaseRelation *relation, ForkNumber fork, BlockNumber block)
{
	BlockNumber gap = SEQUENTIAL_GAP;
	int			window = 1;
	int			count;

	/* Parallel workers skip what the others read. */
	if (IsParallelWorker() || ParallelContextActive())
		gap = PAGODA_LOCK_SPAN;
	if (relation->next[fork] != InvalidBlockNumber &&
		block >= relation->next[fork] && block - relation->next[fork] < gap)
		window = Min(Max(relation->window[fork], 1) * 4, pagoda_readahead_max);

	count = Min(window, (int) (PAGODA_LOCK_SPAN - block % PAGODA_LOCK_SPAN));
	count = Min((BlockNumber) count, relation->nblocks[fork] - block);
	relation->window[fork] = window;
	return count;
}

/* Under the exclusive block lock. Leaves the local versions, as they were before, in `present`. */
static void
store_pages(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count)
{
	char		path[MAXPGPATH];
	off_t		position = (off_t) (block % RELSEG_SIZE) * BLCKSZ;
	int			local;
	int			fd;

	segment_path(path, rnode, fork, block);
	fd = OpenTransientFile(path, O_RDWR | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not open file \"%s\": %m", path)));
	if (is_hole(fd, position, (off_t) count * BLCKSZ))
	{
		/* Reading it would fill the kernel's cache with zeros first. Nobody looks at more than the headers of new pages. */
		for (int i = 0; i < count; i++)
			memset(present + (Size) i * BLCKSZ, 0, HEADER_BYTES);
		local = count;
	}
	else
	{
		ssize_t		n = pg_pread(fd, present, (Size) count * BLCKSZ, position);

		if (n < 0)
			ereport(ERROR,
					(errcode_for_file_access(), errmsg("could not read file \"%s\": %m", path)));
		local = n / BLCKSZ;
		memset(present + (Size) local * BLCKSZ, 0, (Size) (count - local) * BLCKSZ);
	}

	for (int i = 0; i < local;)
	{
		int			run = 0;

		while (i + run < local &&
			   PageIsNew((Page) (present + (Size) (i + run) * BLCKSZ)) &&
			   !PageIsNew((Page) (fetched + (Size) (i + run) * BLCKSZ)))
			run++;
		if (run > 0)
		{
			store_run(fd, path, position + (off_t) i * BLCKSZ, fetched + (Size) i * BLCKSZ, run);
			i += run;
		}
		else
		{
			metrics_add(PageIsNew((Page) (fetched + (Size) i * BLCKSZ)) ? METRIC_ZERO_PAGES : METRIC_PAGES_LATE, 1);
			i++;
		}
	}
	CloseTransientFile(fd);
}

/* Does the file have these bytes, and all of them as a hole? */
static bool
is_hole(int fd, off_t position, off_t length)
{
	struct stat status;
	off_t		data;

	if (fstat(fd, &status) != 0 || status.st_size < position + length)
		return false;
	data = lseek(fd, position, SEEK_DATA);
	return data < 0 ? errno == ENXIO : data >= position + length;
}

/*
 * A process killed in the middle of a write leaves whole kernel pages of it behind. So the pages go first with empty
 * headers, which still makes them new, then each header: a page is either complete or fetched again.
 */
static void
store_run(int fd, const char *path, off_t position, char *pages, int count)
{
	char		headers[PAGODA_FETCH_MAX][HEADER_BYTES];
	Size		length = (Size) count * BLCKSZ;
	bool		ok;

	for (int i = 0; i < count; i++)
	{
		memcpy(headers[i], pages + (Size) i * BLCKSZ, HEADER_BYTES);
		memset(pages + (Size) i * BLCKSZ, 0, HEADER_BYTES);
	}
	errno = 0;
	ok = pg_pwrite(fd, pages, length, position) == (ssize_t) length;
	for (int i = 0; i < count; i++)
	{
		memcpy(pages + (Size) i * BLCKSZ, headers[i], HEADER_BYTES);
		ok = ok && pg_pwrite(fd, headers[i], HEADER_BYTES, position + (off_t) i * BLCKSZ) == HEADER_BYTES;
	}
	if (!ok)
	{
		if (errno == 0)
			errno = ENOSPC;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write fetched pages into file \"%s\": %m", path),
				 errhint("Check free disk space on the compute.")));
	}
	metrics_add(METRIC_PAGES_STORED, count);
}

/* Path of the segment file that holds a block. */
static void
segment_path(char *path, RelFileNode rnode, ForkNumber fork, BlockNumber block)
{
	char	   *first = relpathperm(rnode, fork);

	if (block < RELSEG_SIZE)
		strlcpy(path, first, MAXPGPATH);
	else
		snprintf(path, MAXPGPATH, "%s.%u", first, block / RELSEG_SIZE);
	pfree(first);
}

static bool
local_file_exists(RelFileNode rnode, ForkNumber fork)
{
	char	   *path = relpathperm(rnode, fork);
	bool		exists = access(path, F_OK) == 0;

	if (!exists && errno != ENOENT && errno != ENOTDIR)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not access file \"%s\": %m", path)));
	pfree(path);
	return exists;
}

/* Under the file lock. `pages` (optional) are the contents, for forks of one segment. */
static void
create_local_file(RelFileNode rnode, ForkNumber fork, BlockNumber nblocks, const char *pages)
{
	char	   *first = relpathperm(rnode, fork);
	BlockNumber last = nblocks / RELSEG_SIZE;

	make_directories(rnode);

	/* Left-overs of an attempt that ended in a crash, longer than what is made now. */
	for (BlockNumber segment = last + 1;; segment++)
	{
		char		path[MAXPGPATH];

		snprintf(path, sizeof(path), "%s.%u", first, segment);
		if (unlink(path) != 0)
			break;
	}
	for (BlockNumber segment = last; segment > 0; segment--)
	{
		char		path[MAXPGPATH];
		BlockNumber blocks = segment == last ? nblocks % RELSEG_SIZE : RELSEG_SIZE;

		snprintf(path, sizeof(path), "%s.%u", first, segment);
		create_segment(path, (off_t) blocks * BLCKSZ, NULL, false);
	}
	create_segment(first, (off_t) Min(nblocks, RELSEG_SIZE) * BLCKSZ, pages, true);
	pfree(first);
	metrics_add(METRIC_FILES_CREATED, 1);
}

static void
create_segment(const char *path, off_t size, const char *pages, bool rename_into_place)
{
	char		made[MAXPGPATH];
	int			fd;

	snprintf(made, sizeof(made), rename_into_place ? "%s.new" : "%s", path);
	fd = OpenTransientFile(made, O_RDWR | O_CREAT | O_TRUNC | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not create file \"%s\": %m", made)));
	errno = 0;
	if ((pages != NULL && pg_pwrite(fd, pages, size, 0) != size) ||
		ftruncate(fd, size) != 0 ||
		(rename_into_place && rename(made, path) != 0))
	{
		if (errno == 0)
			errno = ENOSPC;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not make file \"%s\": %m", path),
				 errhint("Check free disk space on the compute.")));
	}
	CloseTransientFile(fd);
}

static void
make_directories(RelFileNode rnode)
{
	char	   *directory;

	if (rnode.spcNode == GLOBALTABLESPACE_OID)
		return;
	hydrate_tablespace_directory(rnode.spcNode);
	directory = GetDatabasePath(rnode.dbNode, rnode.spcNode);
	if (MakePGDirectory(directory) != 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not create directory \"%s\": %m", directory)));
	pfree(directory);
}

static char *
read_init_fork(RelFileNode rnode, BlockNumber nblocks)
{
	char	   *pages = palloc0(Max((Size) nblocks, 1) * BLCKSZ);

	for (BlockNumber block = 0; block < nblocks;)
		block += agent_get_pages(rnode, INIT_FORKNUM, block, Min(nblocks - block, PAGODA_FETCH_MAX), pages + (Size) block * BLCKSZ, NULL, 0);
	return pages;
}

static List *
all_databases(void)
{
	Relation	catalog = table_open(DatabaseRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(catalog, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	List	   *databases = NIL;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		databases = lappend_oid(databases, ((Form_pg_database) GETSTRUCT(tuple))->oid);
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return databases;
}

/* Fetches what is not local yet of a fork whose file exists. */
static void
hydrate_all_pages(RelFileNode rnode, ForkNumber fork)
{
	BaseRelation *relation = base_lookup(rnode);
	BlockNumber nblocks = relation->nblocks[fork] == BASE_ABSENT ? 0 : relation->nblocks[fork];

	for (BlockNumber block = 0; block < nblocks; block += PAGODA_FETCH_MAX)
	{
		int			count = Min(nblocks - block, PAGODA_FETCH_MAX);

		CHECK_FOR_INTERRUPTS();
		if (!range_is_local(rnode, fork, block, count))
			(void) fetch_and_store(rnode, fork, block, count, NULL, 0);
	}
}

static bool
range_is_local(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count)
{
	char		path[MAXPGPATH];
	ssize_t		n;
	int			fd;

	need_buffers(count);
	segment_path(path, rnode, fork, block);
	fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0)
		return false;
	n = pg_pread(fd, present, (Size) count * BLCKSZ, (off_t) (block % RELSEG_SIZE) * BLCKSZ);
	CloseTransientFile(fd);
	for (int i = 0; i < n / BLCKSZ; i++)
		if (PageIsNew((Page) (present + (Size) i * BLCKSZ)))
			return false;
	return n == (ssize_t) count * BLCKSZ;
}

static void
need_buffers(int pages)
{
	int			wanted = pages == 1 ? 1 : PAGODA_FETCH_MAX;

	if (buffer_pages >= wanted)
		return;
	if (buffer_pages > 0)
	{
		buffer_pages = 0;
		pfree(fetched);
		pfree(present);
	}
	fetched = MemoryContextAlloc(TopMemoryContext, (Size) wanted * BLCKSZ);
	present = MemoryContextAlloc(TopMemoryContext, (Size) wanted * BLCKSZ);
	buffer_pages = wanted;
}
