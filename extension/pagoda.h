/*
 * pagoda.h - what the parts of the extension share.
 *
 * Words: "base" is what storage holds at the start LSN of this compute; it never changes while the compute runs.
 * "Local" is the relation file in the data directory. A local page that is not new (pd_upper != 0) is always the newest.
 */
#ifndef PAGODA_H
#define PAGODA_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "nodes/nodes.h"
#include "port/atomics.h"
#include "storage/block.h"
#include "storage/lwlock.h"
#include "storage/relfilenode.h"
#include "storage/smgr.h"

#define PAGODA_FORKS (MAX_FORKNUM + 1)

/* A fork that the base does not have. */
#define BASE_ABSENT InvalidBlockNumber

/* Most pages in one GETPAGES request, and blocks that one block lock covers. */
#define PAGODA_FETCH_MAX 64
#define PAGODA_LOCK_SPAN 128

/* ---- GUCs (pagoda.c) ---- */
extern char *pagoda_agent_socket;
extern char *pagoda_state_dir;
extern bool pagoda_disabled;
extern int	pagoda_readahead_max;
extern int	pagoda_relation_slots;
extern int	pagoda_connect_timeout;	/* seconds */
extern int	pagoda_request_timeout;	/* seconds */

/* Writes the path of a state file into `path` (MAXPGPATH bytes). */
extern void pagoda_state_path(char *path, const char *name);

/* ---- patch.c: replacing entries of tables in the running binary ---- */
extern void pagoda_patch_memory(void *target, const void *replacement, size_t length);
extern void *pagoda_find_pointers(void *const *pointers, int count, const char *what);

/* ---- agent.c: the hydration socket (src/wire/hydration.ts is its description) ---- */
typedef enum AgentOp
{
	AGENT_NBLOCKS = 1,
	AGENT_GETPAGES = 2,
	AGENT_LISTDB = 3,
	AGENT_DBSIZE = 4
} AgentOp;

#define AGENT_ALL_FORKS 0xFF

typedef struct AgentListEntry
{
	uint32		spc;
	uint32		db;
	uint32		rel;
	uint8		fork;
	uint8		pad[3];
	uint32		nblocks;
} AgentListEntry;

/* Sizes of all forks of a relation in the base. With `nothrow`, false when the agent cannot be asked. */
extern bool agent_relation_sizes(RelFileNode rnode, BlockNumber *nblocks, bool nothrow);

/* Pages that will be needed soon. */
typedef struct AheadRange
{
	BlockNumber block;
	int			count;
} AheadRange;

/* Ranges that a sequential reader has asked for beyond the one it reads: storage, agent and it work on one each. */
#define PAGODA_AHEAD_MAX 3

/*
 * Fetches up to `count` base pages; answers how many came. Cancellable. The `nahead` ranges in `ahead` are asked for at once,
 * unless they have been already, without waiting for them.
 */
extern int	agent_get_pages(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count, char *pages, const AheadRange *ahead, int nahead);

/* Asks for pages that will be needed soon. */
extern void agent_prefetch(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count);

/* Was this single block asked for? */
extern bool agent_hinted(RelFileNode rnode, ForkNumber fork, BlockNumber block);

/* All forks of the relations of a database (0: the shared ones) in a tablespace (0 = any); palloc'd. */
extern AgentListEntry *agent_list(Oid spc, Oid db, int *count);

/* Does the base have this database? */
extern bool agent_database_exists(Oid db);

/* ---- packed.c: pages as they lie in storage ---- */

/* Has this server the LZ4 that they need? */
extern bool packed_supported(void);
extern bool packed_unpack(const char *packed, size_t length, int total, int skip, int count, char *pages);

/* ---- base.c: base sizes, guards, shared memory ---- */

/* What one relation has in the base, after this compute's drops and truncations. A backend's own copy. */
typedef struct BaseRelation
{
	RelFileNode rnode;			/* hash key */
	bool		known;
	bool		dropped;
	uint64		generation;		/* of the guards when this copy was checked */
	BlockNumber nblocks[PAGODA_FORKS];	/* BASE_ABSENT: the base has no such fork */

	/* read-ahead, per fork */
	BlockNumber next[PAGODA_FORKS]; /* block after the last one fetched */
	int			window[PAGODA_FORKS];	/* pages of the last fetch */
} BaseRelation;

extern Size base_shmem_size(void);
extern void base_shmem_init(void);

/* Asks the agent when nobody has yet. Can raise an error or be cancelled. */
extern BaseRelation *base_lookup(RelFileNode rnode);

/* Never asks: NULL when unknown. */
extern BaseRelation *base_lookup_known(RelFileNode rnode);

/* Is nothing of this database in the base? Asks the agent once per database. */
extern void base_learn_database(Oid db);

/* Guards. They are durable against a crash of Postgres (not of the machine) before they return; failure is a PANIC. */
extern void base_guard_truncate(RelFileNode rnode, ForkNumber fork, BlockNumber nblocks);
extern void base_guard_drop(RelFileNode rnode);
extern void base_guard_drop_database(Oid spc, Oid db);	/* spc 0: in every tablespace */

/* Has this compute had a directory of the tablespace? */
extern bool base_tablespace_seen(Oid spc, bool remember);

extern LWLock *base_flight_lock(void);
extern LWLock *base_file_lock(RelFileNode rnode);
extern LWLock *base_block_lock(RelFileNode rnode, ForkNumber fork, BlockNumber block);

/* ---- flight.c: fetches under way ---- */
extern Size flight_shmem_size(void);
extern void flight_shmem_init(LWLock *lock);
extern bool flight_begin(RelFileNode rnode, ForkNumber fork, BlockNumber block, int *count);
extern void flight_end(void);

/* ---- hydrate.c: files and pages ---- */

/* Makes the local file of a fork when the base has it. True when the file exists afterwards. */
extern bool hydrate_fork(RelFileNode rnode, ForkNumber fork);

/* Reads a block, fetching it (and read-ahead) when it is not local. */
extern void hydrate_read(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer);

/* A hint that the block will be read. True when it was asked for; false when it is local. */
extern bool hydrate_prefetch(RelFileNode rnode, ForkNumber fork, BlockNumber block);

/* Every file with (`pages`) or without its pages: what is about to be read past the storage manager. spc 0: any. */
extern void hydrate_database(Oid spc, Oid db, bool pages);

/* Every file of a tablespace, without its pages. */
extern void hydrate_tablespace_files(Oid spc);

/* Directories of a tablespace that exists in the base but not yet here. */
extern void hydrate_tablespace_directory(Oid spc);
extern void hydrate_all_tablespace_directories(void);

/* Bytes of base forks that have no local file yet; spc 0: in any tablespace. */
extern int64 hydrate_missing_bytes(Oid spc, Oid db);
extern int64 hydrate_missing_tablespace_bytes(Oid spc);

/* Bytes of one fork, local or not. */
extern int64 hydrate_fork_bytes(RelFileNode rnode, BackendId backend, ForkNumber fork);

/* ---- storage.c, sizes.c, utility.c, synccommit.c, keeper.c ---- */
extern void storage_install(void);
extern void sizes_install(void);
extern void utility_install(void);

/* roles.c */
extern void roles_check(Node *statement);

extern void synccommit_install(void);
extern void synccommit_wait(XLogRecPtr lsn);
extern void keeper_install(void);

/* Notes that a page was written whose change WAL does not hold (free-space map, sequence read position). */
extern void keeper_note_write(RelFileNode rnode, ForkNumber fork, BlockNumber block, const char *page);

/* ---- throttle.c: writers wait when storage cannot keep up ---- */
extern void throttle_install(void);
extern void throttle_extend(void);

/* ---- metrics.c: <data directory>/pagoda_metrics ---- */
typedef enum Metric
{
	METRIC_PAGES_FETCHED,
	METRIC_FETCH_REQUESTS,
	METRIC_SIZE_REQUESTS,
	METRIC_LIST_REQUESTS,
	METRIC_WAIT_MICROSECONDS,
	METRIC_LOCAL_READS,
	METRIC_PAGES_STORED,
	METRIC_PAGES_LATE,
	METRIC_ZERO_PAGES,
	METRIC_FILES_CREATED,
	METRIC_CONNECTS,
	METRIC_REQUEST_FAILURES,
	METRIC_GUARD_RECORDS,
	METRIC_THROTTLED,
	METRIC_THROTTLE_MICROSECONDS,
	METRIC_COUNT
} Metric;

extern void metrics_open(void);
extern void metrics_add(Metric metric, uint64 n);
extern void metrics_local_read(void);
extern void metrics_flush(void);

#endif							/* PAGODA_H */
