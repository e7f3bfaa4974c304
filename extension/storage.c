/*
 * storage.c - our functions in the storage manager's table; each does what hydration needs, then hands over to md.
 *
 * The struct repeats f_smgr of PostgreSQL 15 (storage/smgr/smgr.c), which no header declares.
 */
#include "pagoda.h"

#include "access/xlogutils.h"
#include "storage/md.h"

typedef struct SmgrTable
{
	void		(*init) (void);
	void		(*shutdown) (void);
	void		(*open) (SMgrRelation reln);
	void		(*close) (SMgrRelation reln, ForkNumber fork);
	void		(*create) (SMgrRelation reln, ForkNumber fork, bool is_redo);
	bool		(*exists) (SMgrRelation reln, ForkNumber fork);
	void		(*unlink) (RelFileNodeBackend rnode, ForkNumber fork, bool is_redo);
	void		(*extend) (SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer, bool skip_fsync);
	bool		(*prefetch) (SMgrRelation reln, ForkNumber fork, BlockNumber block);
	void		(*read) (SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer);
	void		(*write) (SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer, bool skip_fsync);
	void		(*writeback) (SMgrRelation reln, ForkNumber fork, BlockNumber block, BlockNumber nblocks);
	BlockNumber (*nblocks) (SMgrRelation reln, ForkNumber fork);
	void		(*truncate) (SMgrRelation reln, ForkNumber fork, BlockNumber old_nblocks, BlockNumber nblocks);
	void		(*immedsync) (SMgrRelation reln, ForkNumber fork);
} SmgrTable;

static void make_local(SMgrRelation reln, ForkNumber fork);
static void pagoda_create(SMgrRelation reln, ForkNumber fork, bool is_redo);
static bool pagoda_exists(SMgrRelation reln, ForkNumber fork);
static void pagoda_unlink(RelFileNodeBackend rnode, ForkNumber fork, bool is_redo);
static void pagoda_extend(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer, bool skip_fsync);
static bool pagoda_prefetch(SMgrRelation reln, ForkNumber fork, BlockNumber block);
static void pagoda_read(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer);
static void pagoda_write(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer, bool skip_fsync);
static BlockNumber pagoda_nblocks(SMgrRelation reln, ForkNumber fork);
static void pagoda_truncate(SMgrRelation reln, ForkNumber fork, BlockNumber old_nblocks, BlockNumber nblocks);
static void pagoda_immedsync(SMgrRelation reln, ForkNumber fork);

void
storage_install(void)
{
	const SmgrTable md = {
		.init = mdinit,
		.shutdown = NULL,
		.open = mdopen,
		.close = mdclose,
		.create = mdcreate,
		.exists = mdexists,
		.unlink = mdunlink,
		.extend = mdextend,
		.prefetch = mdprefetch,
		.read = mdread,
		.write = mdwrite,
		.writeback = mdwriteback,
		.nblocks = mdnblocks,
		.truncate = mdtruncate,
		.immedsync = mdimmedsync
	};
	SmgrTable	ours = md;
	void	   *target = pagoda_find_pointers((void *const *) &md, sizeof(md) / sizeof(void *), "the storage manager's table");

	ours.create = pagoda_create;
	ours.exists = pagoda_exists;
	ours.unlink = pagoda_unlink;
	ours.extend = pagoda_extend;
	ours.prefetch = pagoda_prefetch;
	ours.read = pagoda_read;
	ours.write = pagoda_write;
	ours.nblocks = pagoda_nblocks;
	ours.truncate = pagoda_truncate;
	ours.immedsync = pagoda_immedsync;
	pagoda_patch_memory(target, &ours, sizeof(ours));
}

/* A fork that md holds open has a local file; else it is made when the base has the fork. */
static void
make_local(SMgrRelation reln, ForkNumber fork)
{
	if (reln->md_num_open_segs[fork] == 0 && !SmgrIsTemp(reln))
		hydrate_fork(reln->smgr_rnode.node, fork);
}

static void
pagoda_create(SMgrRelation reln, ForkNumber fork, bool is_redo)
{
	RelFileNode rnode = reln->smgr_rnode.node;

	hydrate_tablespace_directory(rnode.spcNode);
	if (SmgrIsTemp(reln))
	{
		mdcreate(reln, fork, is_redo);
		return;
	}

	if (is_redo)
	{
		/* Crash recovery repeats the creation of a file that may also be in the base by now. */
		make_local(reln, fork);
	}
	else
	{
		BaseRelation *relation;

		base_learn_database(rnode.dbNode);
		relation = base_lookup(rnode);

		/*
		 * After OIDs wrapped around, a number can come up again whose files are in the base only: the check in
		 * GetNewRelFileNode looks at local files. The files of this database are made now, so it happens once.
		 */
		if (relation->nblocks[fork] != BASE_ABSENT ||
			(fork == MAIN_FORKNUM && relation->nblocks[INIT_FORKNUM] != BASE_ABSENT))
		{
			hydrate_database(rnode.spcNode, rnode.dbNode, false);
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_FILE),
					 errmsg("file number %u of tablespace %u is already used by a relation in storage", rnode.relNode, rnode.spcNode),
					 errhint("Object identifiers have wrapped around. Run the statement again: it gets another number.")));
		}
	}
	mdcreate(reln, fork, is_redo);
}

static bool
pagoda_exists(SMgrRelation reln, ForkNumber fork)
{
	if (mdexists(reln, fork))
		return true;
	if (SmgrIsTemp(reln) || !hydrate_fork(reln->smgr_rnode.node, fork))
		return false;
	return mdexists(reln, fork);
}

/* Forks are unlinked one by one, the main one first; the guard is for all of them. */
static void
pagoda_unlink(RelFileNodeBackend rnode, ForkNumber fork, bool is_redo)
{
	if (!RelFileNodeBackendIsTemp(rnode))
	{
		LWLock	   *lock = base_file_lock(rnode.node);

		if (fork == MAIN_FORKNUM || fork == InvalidForkNumber)
			base_guard_drop(rnode.node);

		/* Whoever was making the file when the guard was set is done after this; later ones see the guard. */
		LWLockAcquire(lock, LW_EXCLUSIVE);
		LWLockRelease(lock);
	}
	mdunlink(rnode, fork, is_redo);
}

static void
pagoda_extend(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer, bool skip_fsync)
{
	make_local(reln, fork);
	if (!SmgrIsTemp(reln))
		throttle_extend();
	mdextend(reln, fork, block, buffer, skip_fsync);
	if (!SmgrIsTemp(reln))
		keeper_note_write(reln->smgr_rnode.node, fork, block, buffer);
}

/* A hint: to the agent for a block that is not local, else to the kernel. */
static bool
pagoda_prefetch(SMgrRelation reln, ForkNumber fork, BlockNumber block)
{
	make_local(reln, fork);
	if (!SmgrIsTemp(reln) && hydrate_prefetch(reln->smgr_rnode.node, fork, block))
		return true;
	return mdprefetch(reln, fork, block);
}

static void
pagoda_read(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer)
{
	if (SmgrIsTemp(reln))
	{
		mdread(reln, fork, block, buffer);
		return;
	}
	make_local(reln, fork);
	hydrate_read(reln, fork, block, buffer);
}

/*
 * Never asks the agent: the block was read or extended before, so its file is local. Shared block lock: no hydrating
 * write may come between this write and the check that preceded it (extension/README.md, "The race").
 */
static void
pagoda_write(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer, bool skip_fsync)
{
	RelFileNode rnode = reln->smgr_rnode.node;
	BaseRelation *relation;

	if (SmgrIsTemp(reln))
	{
		mdwrite(reln, fork, block, buffer, skip_fsync);
		return;
	}
	if (InRecovery)
		make_local(reln, fork);
	relation = base_lookup_known(rnode);
	if (relation != NULL && (relation->nblocks[fork] == BASE_ABSENT || block >= relation->nblocks[fork]))
		mdwrite(reln, fork, block, buffer, skip_fsync);
	else
	{
		LWLock	   *lock = base_block_lock(rnode, fork, block);

		LWLockAcquire(lock, LW_SHARED);
		mdwrite(reln, fork, block, buffer, skip_fsync);
		LWLockRelease(lock);
	}
	keeper_note_write(rnode, fork, block, buffer);
}

static BlockNumber
pagoda_nblocks(SMgrRelation reln, ForkNumber fork)
{
	make_local(reln, fork);
	return mdnblocks(reln, fork);
}

/* In a critical section: nothing here may fail, wait for the agent or take memory. */
static void
pagoda_truncate(SMgrRelation reln, ForkNumber fork, BlockNumber old_nblocks, BlockNumber nblocks)
{
	if (!SmgrIsTemp(reln))
		base_guard_truncate(reln->smgr_rnode.node, fork, nblocks);
	mdtruncate(reln, fork, old_nblocks, nblocks);
}

static void
pagoda_immedsync(SMgrRelation reln, ForkNumber fork)
{
	make_local(reln, fork);
	mdimmedsync(reln, fork);
}
