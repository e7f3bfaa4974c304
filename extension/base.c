/*
 * base.c - what the base has of each relation, and the guards that keep dead pages from coming back.
 *
 * A guard says: this compute truncated the fork to n blocks, or dropped the relation, or the database. The base knows
 * nothing of it, since it stands still at the start LSN; without the guard a re-extended block or a file recreated by
 * crash recovery would be filled with old pages.
 *
 * One table in shared memory holds both guards and base sizes learned from the agent: open addressing, linear probing,
 * one slot per relation. Sizes are a cache (they stop being added when the table is full enough), guards are truth: when
 * they do not fit, Postgres stops, and the next compute starts without any.
 *
 * Guards are first appended to a log, so that they outlive a crash of Postgres: shared memory is built anew then, and
 * local files are kept. One write(2) of a record with O_APPEND; no fsync, as the local disk is disposable anyway.
 *
 * Invariants:
 * 1. Base sizes only shrink, and a dropped relation stays dropped, as long as the data directory lives.
 * 2. A guard is in the log before the file changes.
 * 3. Every change of a guard raises the generation, after which each backend checks its copies again.
 */
#include "pagoda.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlogutils.h"
#include "common/file_perm.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#define FILE_LOCKS 16
#define BLOCK_LOCKS 128
#define ALL_LOCKS (2 + FILE_LOCKS + BLOCK_LOCKS)

#define SLOT_USED 0x01
#define SLOT_KNOWN 0x02			/* nblocks come from the agent */
#define SLOT_DROPPED 0x04		/* guard */
#define SLOT_CAPPED 0x08		/* guard; when not SLOT_KNOWN, nblocks are caps and BASE_ABSENT means none */
#define SLOT_DATABASE_NEW 0x10	/* rel = spc = 0: the base has no such database */
#define SLOT_DATABASE_OLD 0x20	/* rel = spc = 0: it has */

#define SLOT_GUARDS (SLOT_DROPPED | SLOT_CAPPED)

/*
 * rel = 0 stands for a database (spc = 0: in every tablespace), db = rel = 0 for a tablespace whose directory was seen.
 */
typedef struct Slot
{
	RelFileNode rnode;
	uint32		flags;
	BlockNumber nblocks[PAGODA_FORKS];
} Slot;

StaticAssertDecl(sizeof(Slot) == 32, "slot size");

typedef struct BaseShared
{
	pg_atomic_uint64 generation;
	uint32		slots;			/* power of two */
	uint32		used;
	Slot		slot[FLEXIBLE_ARRAY_MEMBER];
} BaseShared;

typedef enum GuardKind
{
	GUARD_TRUNCATE = 1,
	GUARD_DROP = 2
} GuardKind;

#define GUARD_MAGIC 0x44475031	/* "1PGD" */

typedef struct GuardRecord
{
	uint32		magic;
	uint32		kind;
	RelFileNode rnode;
	uint32		fork;
	uint32		nblocks;
	uint32		crc;			/* CRC-32C of the fields before */
} GuardRecord;

StaticAssertDecl(sizeof(GuardRecord) == 32, "guard record layout");

static BaseShared *shared = NULL;
static LWLockPadded *locks = NULL;
static HTAB *local_relations = NULL;
static BaseRelation *last_relation = NULL;
static int	guard_log = -1;

#define TABLE_LOCK (&locks[0].lock)

static uint32 slot_count(void);
static BaseRelation *local_entry(RelFileNode rnode);
static BaseRelation *lookup(RelFileNode rnode, bool may_ask, bool nothrow);
static bool refresh(BaseRelation *relation);
static Slot *find_slot(RelFileNode rnode);
static Slot *add_slot(RelFileNode rnode, bool guard);
static void remove_slot(RelFileNode rnode);
static bool database_gone(RelFileNode rnode);
static void apply_truncate(RelFileNode rnode, ForkNumber fork, BlockNumber nblocks, const BaseRelation *relation);
static void apply_drop(RelFileNode rnode);
static void append_guard(GuardKind kind, RelFileNode rnode, ForkNumber fork, BlockNumber nblocks);
static void replay_guards(void);
static uint32 guard_crc(const GuardRecord *record);

Size
base_shmem_size(void)
{
	RequestNamedLWLockTranche("pagoda", ALL_LOCKS);
	return offsetof(BaseShared, slot) + (Size) slot_count() * sizeof(Slot);
}

/* Also called after a crash, with fresh shared memory: then the log gives the guards back. */
void
base_shmem_init(void)
{
	bool		found;

	shared = ShmemInitStruct("pagoda", offsetof(BaseShared, slot) + (Size) slot_count() * sizeof(Slot), &found);
	locks = GetNamedLWLockTranche("pagoda");
	if (!found)
	{
		/* The slots are left alone: fresh shared memory is zero, and untouched pages of it cost nothing. */
		pg_atomic_init_u64(&shared->generation, 1);
		shared->slots = slot_count();
		shared->used = 0;
		replay_guards();
	}
}

BaseRelation *
base_lookup(RelFileNode rnode)
{
	return lookup(rnode, true, false);
}

BaseRelation *
base_lookup_known(RelFileNode rnode)
{
	return lookup(rnode, false, true);
}

void
base_learn_database(Oid db)
{
	RelFileNode key = {.dbNode = db};
	Slot	   *slot;
	bool		exists;

	if (db == InvalidOid)
		return;
	LWLockAcquire(TABLE_LOCK, LW_SHARED);
	slot = find_slot(key);
	LWLockRelease(TABLE_LOCK);
	if (slot != NULL)
		return;

	exists = agent_database_exists(db);

	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	slot = find_slot(key);
	if (slot == NULL && (slot = add_slot(key, false)) != NULL)
		slot->flags |= exists ? SLOT_DATABASE_OLD : SLOT_DATABASE_NEW;
	LWLockRelease(TABLE_LOCK);
}

/*
 * Called in critical sections: takes no memory when the relation was looked up before, as the caller's smgrnblocks did.
 */
void
base_guard_truncate(RelFileNode rnode, ForkNumber fork, BlockNumber nblocks)
{
	BaseRelation *relation = base_lookup_known(rnode);

	if (relation != NULL &&
		(relation->dropped || relation->nblocks[fork] == BASE_ABSENT || relation->nblocks[fork] <= nblocks))
		return;

	append_guard(GUARD_TRUNCATE, rnode, fork, nblocks);
	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	apply_truncate(rnode, fork, nblocks, relation);
	pg_atomic_fetch_add_u64(&shared->generation, 1);
	LWLockRelease(TABLE_LOCK);
}

/*
 * Called after commit, where no error may be raised. A relation that the base does not have needs no guard, and most
 * dropped ones are of that kind (made and dropped by this compute), so it is worth asking.
 */
void
base_guard_drop(RelFileNode rnode)
{
	BaseRelation *relation = lookup(rnode, !InRecovery, true);
	bool		in_base = true;

	if (relation != NULL)
	{
		if (relation->dropped)
			return;
		in_base = false;
		for (int fork = 0; fork < PAGODA_FORKS; fork++)
			in_base |= relation->nblocks[fork] != BASE_ABSENT;
		if (last_relation == relation)
			last_relation = NULL;
		hash_search(local_relations, &rnode, HASH_REMOVE, NULL);
	}

	if (in_base)
		append_guard(GUARD_DROP, rnode, MAIN_FORKNUM, 0);
	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	if (in_base)
	{
		apply_drop(rnode);
		pg_atomic_fetch_add_u64(&shared->generation, 1);
	}
	else
		remove_slot(rnode);
	LWLockRelease(TABLE_LOCK);
}

void
base_guard_drop_database(Oid spc, Oid db)
{
	RelFileNode key = {.spcNode = spc, .dbNode = db};
	RelFileNode database = {.dbNode = db};
	Slot	   *slot;
	bool		in_base;

	LWLockAcquire(TABLE_LOCK, LW_SHARED);
	slot = find_slot(database);
	in_base = slot == NULL || !(slot->flags & SLOT_DATABASE_NEW);
	LWLockRelease(TABLE_LOCK);
	if (!in_base)
		return;

	append_guard(GUARD_DROP, key, MAIN_FORKNUM, 0);
	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	apply_drop(key);
	pg_atomic_fetch_add_u64(&shared->generation, 1);
	LWLockRelease(TABLE_LOCK);
}

bool
base_tablespace_seen(Oid spc, bool remember)
{
	RelFileNode key = {.spcNode = spc};
	Slot	   *slot;

	LWLockAcquire(TABLE_LOCK, remember ? LW_EXCLUSIVE : LW_SHARED);
	slot = find_slot(key);
	if (slot == NULL && remember)
		slot = add_slot(key, false);
	LWLockRelease(TABLE_LOCK);
	return slot != NULL;
}

LWLock *
base_flight_lock(void)
{
	return &locks[1].lock;
}

LWLock *
base_file_lock(RelFileNode rnode)
{
	return &locks[2 + hash_bytes((unsigned char *) &rnode, sizeof(rnode)) % FILE_LOCKS].lock;
}

LWLock *
base_block_lock(RelFileNode rnode, ForkNumber fork, BlockNumber block)
{
	uint32		hash = hash_bytes((unsigned char *) &rnode, sizeof(rnode));

	hash = hash_combine(hash, murmurhash32((block / PAGODA_LOCK_SPAN) * PAGODA_FORKS + fork));
	return &locks[2 + FILE_LOCKS + hash % BLOCK_LOCKS].lock;
}

static uint32
slot_count(void)
{
	uint32		slots = 1024;

	while (slots < (uint32) pagoda_relation_slots)
		slots *= 2;
	return slots;
}

static BaseRelation *
local_entry(RelFileNode rnode)
{
	bool		found;
	BaseRelation *relation;

	if (last_relation != NULL && RelFileNodeEquals(last_relation->rnode, rnode))
		return last_relation;
	if (local_relations == NULL)
	{
		HASHCTL		control = {.keysize = sizeof(RelFileNode), .entrysize = sizeof(BaseRelation)};

		control.hcxt = TopMemoryContext;
		local_relations = hash_create("pagoda relations", 256, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	relation = hash_search(local_relations, &rnode, HASH_ENTER, &found);
	if (!found)
	{
		relation->known = false;
		relation->dropped = false;
		relation->generation = 0;
		for (int fork = 0; fork < PAGODA_FORKS; fork++)
		{
			relation->nblocks[fork] = BASE_ABSENT;
			relation->next[fork] = InvalidBlockNumber;
			relation->window[fork] = 0;
		}
	}
	last_relation = relation;
	return relation;
}

static BaseRelation *
lookup(RelFileNode rnode, bool may_ask, bool nothrow)
{
	BaseRelation *relation = local_entry(rnode);
	BlockNumber nblocks[PAGODA_FORKS];
	Slot	   *slot;

	if (relation->known && relation->generation == pg_atomic_read_u64(&shared->generation))
		return relation;
	if (refresh(relation))
		return relation;
	if (!may_ask || !agent_relation_sizes(rnode, nblocks, nothrow))
		return NULL;

	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	slot = find_slot(rnode);
	if (slot == NULL && (slot = add_slot(rnode, false)) != NULL)
	{
		slot->flags |= SLOT_KNOWN;
		memcpy(slot->nblocks, nblocks, sizeof(nblocks));
	}
	else if (slot != NULL && !(slot->flags & SLOT_KNOWN))
	{
		/* A cap that stood before the size was known: after a crash. */
		for (int fork = 0; fork < PAGODA_FORKS; fork++)
			slot->nblocks[fork] = nblocks[fork] == BASE_ABSENT ? BASE_ABSENT : Min(nblocks[fork], slot->nblocks[fork]);
		slot->flags |= SLOT_KNOWN;
	}
	LWLockRelease(TABLE_LOCK);

	/* The hash table may have grown while the agent was asked, but its entries do not move. */
	memcpy(relation->nblocks, nblocks, sizeof(nblocks));
	relation->known = true;
	relation->generation = 0;
	refresh(relation);
	return relation;
}

/* Brings a backend's copy up to the shared state. False when nobody knows the relation's size yet. */
static bool
refresh(BaseRelation *relation)
{
	Slot	   *slot;

	LWLockAcquire(TABLE_LOCK, LW_SHARED);
	relation->generation = pg_atomic_read_u64(&shared->generation);
	slot = find_slot(relation->rnode);
	if (database_gone(relation->rnode) || (slot != NULL && (slot->flags & SLOT_DROPPED)))
	{
		relation->known = true;
		relation->dropped = slot != NULL && (slot->flags & SLOT_DROPPED);
		for (int fork = 0; fork < PAGODA_FORKS; fork++)
			relation->nblocks[fork] = BASE_ABSENT;
	}
	else if (slot != NULL && (slot->flags & SLOT_KNOWN))
	{
		relation->known = true;
		memcpy(relation->nblocks, slot->nblocks, sizeof(slot->nblocks));
	}
	LWLockRelease(TABLE_LOCK);
	return relation->known;
}

static inline uint32
slot_home(RelFileNode rnode)
{
	return hash_bytes((unsigned char *) &rnode, sizeof(rnode)) & (shared->slots - 1);
}

static Slot *
find_slot(RelFileNode rnode)
{
	for (uint32 i = slot_home(rnode);; i = (i + 1) & (shared->slots - 1))
	{
		Slot	   *slot = &shared->slot[i];

		if (!(slot->flags & SLOT_USED))
			return NULL;
		if (RelFileNodeEquals(slot->rnode, rnode))
			return slot;
	}
}

/* The caller found that there is none. NULL when a size (not a guard) finds the table three quarters full. */
static Slot *
add_slot(RelFileNode rnode, bool guard)
{
	uint32		limit = shared->slots - shared->slots / 4;

	if (guard)
		limit = shared->slots - shared->slots / 32;
	if (shared->used >= limit)
	{
		if (!guard)
			return NULL;
		ereport(PANIC,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("pagoda has no room for another dropped or truncated relation (%u slots)", shared->slots),
				 errhint("Committed data is safe. Raise pagoda.relation_slots, then start the endpoint again.")));
	}
	for (uint32 i = slot_home(rnode);; i = (i + 1) & (shared->slots - 1))
	{
		Slot	   *slot = &shared->slot[i];

		if (slot->flags & SLOT_USED)
			continue;
		slot->rnode = rnode;
		slot->flags = SLOT_USED;
		for (int fork = 0; fork < PAGODA_FORKS; fork++)
			slot->nblocks[fork] = BASE_ABSENT;
		shared->used++;
		return slot;
	}
}

/* Closes the gap by moving back the entries that probed over it. */
static void
remove_slot(RelFileNode rnode)
{
	Slot	   *slot = find_slot(rnode);
	uint32		mask = shared->slots - 1;
	uint32		gap;

	if (slot == NULL || (slot->flags & SLOT_GUARDS))
		return;
	gap = slot - shared->slot;
	for (uint32 i = (gap + 1) & mask; shared->slot[i].flags & SLOT_USED; i = (i + 1) & mask)
	{
		uint32		home = slot_home(shared->slot[i].rnode);

		/* It may move to the gap when its home does not lie in (gap, i]. */
		if (((i - home) & mask) >= ((i - gap) & mask))
		{
			shared->slot[gap] = shared->slot[i];
			gap = i;
		}
	}
	memset(&shared->slot[gap], 0, sizeof(Slot));
	shared->used--;
}

static bool
database_gone(RelFileNode rnode)
{
	RelFileNode database = {.dbNode = rnode.dbNode};
	Slot	   *slot;

	if (rnode.dbNode == InvalidOid)
		return false;
	slot = find_slot(database);
	if (slot != NULL && (slot->flags & (SLOT_DROPPED | SLOT_DATABASE_NEW)))
		return true;
	database.spcNode = rnode.spcNode;
	slot = find_slot(database);
	return slot != NULL && (slot->flags & SLOT_DROPPED);
}

static void
apply_truncate(RelFileNode rnode, ForkNumber fork, BlockNumber nblocks, const BaseRelation *relation)
{
	Slot	   *slot = find_slot(rnode);

	if (slot == NULL)
	{
		slot = add_slot(rnode, true);
		if (relation != NULL)
		{
			memcpy(slot->nblocks, relation->nblocks, sizeof(slot->nblocks));
			slot->flags |= SLOT_KNOWN;
		}
	}
	slot->nblocks[fork] = Min(slot->nblocks[fork], nblocks);
	slot->flags |= SLOT_CAPPED;
}

static void
apply_drop(RelFileNode rnode)
{
	Slot	   *slot = find_slot(rnode);

	if (slot == NULL)
		slot = add_slot(rnode, true);
	slot->flags |= SLOT_DROPPED;
}

static void
append_guard(GuardKind kind, RelFileNode rnode, ForkNumber fork, BlockNumber nblocks)
{
	GuardRecord record = {.magic = GUARD_MAGIC, .kind = kind, .rnode = rnode, .fork = fork, .nblocks = nblocks};

	record.crc = guard_crc(&record);
	if (guard_log < 0)
	{
		char		path[MAXPGPATH];

		pagoda_state_path(path, "pagoda_guards");
		guard_log = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, pg_file_create_mode);
	}
	if (guard_log < 0 || write(guard_log, &record, sizeof(record)) != sizeof(record))
		ereport(PANIC,
				(errcode_for_file_access(),
				 errmsg("pagoda could not write its guard log: %m"),
				 errhint("Committed data is safe. Free disk space, then start the endpoint again.")));
	metrics_add(METRIC_GUARD_RECORDS, 1);
}

static void
replay_guards(void)
{
	char		path[MAXPGPATH];
	GuardRecord record;
	off_t		position = 0;
	ssize_t		n;
	int			fd;

	pagoda_state_path(path, "pagoda_guards");
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
	{
		if (errno == ENOENT)
			return;
		ereport(FATAL,
				(errcode_for_file_access(), errmsg("pagoda could not open its guard log \"%s\": %m", path)));
	}
	while ((n = pg_pread(fd, &record, sizeof(record), position)) == sizeof(record))
	{
		if (record.magic != GUARD_MAGIC || record.crc != guard_crc(&record) || record.fork >= PAGODA_FORKS)
			ereport(FATAL,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("pagoda's guard log \"%s\" is damaged at byte %lld", path, (long long) position),
					 errhint("Committed data is safe in storage. Remove this data directory and start the endpoint anew.")));
		if (record.kind == GUARD_TRUNCATE)
			apply_truncate(record.rnode, record.fork, record.nblocks, NULL);
		else
			apply_drop(record.rnode);
		position += sizeof(record);
	}
	if (n < 0)
		ereport(FATAL,
				(errcode_for_file_access(), errmsg("pagoda could not read its guard log \"%s\": %m", path)));

	/* A record cut short by a full disk was never acted upon. */
	if (n > 0 && ftruncate(fd, position) != 0)
		ereport(FATAL,
				(errcode_for_file_access(), errmsg("pagoda could not trim its guard log \"%s\": %m", path)));
	close(fd);
	if (position > 0)
		ereport(LOG,
				(errmsg("pagoda restored %lld guards of dropped and truncated relations",
						(long long) (position / sizeof(record)))));
}

static uint32
guard_crc(const GuardRecord *record)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, record, offsetof(GuardRecord, crc));
	FIN_CRC32C(crc);
	return crc;
}
