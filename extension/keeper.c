/*
 * keeper.c - what a graceful stop must save, because WAL does not hold it.
 *
 * The free-space map is not in WAL, and a sequence's record is up to 32 values ahead of it. Both live in local files, which
 * are gone when the compute is. So every process notes which such pages it wrote, and a background worker logs them as
 * full-page images during a smart or fast shutdown: after all sessions are gone, before the shutdown checkpoint, while
 * the checkpointer and the proposer's walsender still run. It needs no call, no function in any catalog and no database
 * connection. After a crash, or an immediate stop, the state is what a vanilla standby would have: correct, less tidy.
 *
 * The notes are appended to <state directory>/pagoda_changed, 24 bytes each, once per process and page.
 */
#include "pagoda.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include "access/xlog.h"
#include "access/xloginsert.h"
#include "access/htup_details.h"
#include "commands/sequence.h"
#include "common/file_perm.h"
#include "common/relpath.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/bgwriter.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "storage/spin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* commands/sequence.c */
#define SEQUENCE_MAGIC 0x1717

/* How long the worker waits for sessions that are being terminated. The postmaster waits for them in any case. */
#define SESSIONS_WAIT_MS 30000

#define NOTE_MAGIC 0x434e4750	/* "PGNC" */

/* Hash key as well: no padding. */
typedef struct Note
{
	uint32		magic;
	RelFileNode rnode;
	uint32		fork;
	uint32		block;
} Note;

StaticAssertDecl(sizeof(Note) == 24, "note layout");

static HTAB *noted = NULL;
static int	note_file = -1;
static volatile sig_atomic_t stop_requested = false;

PGDLLEXPORT void pagoda_keeper_main(Datum argument);

static void request_stop(SIGNAL_ARGS);
static void wait_for_sessions(void);
static int	count_walsenders(void);
static HTAB *read_notes(void);
static bool keep_free_space_page(const Note *note);
static bool keep_sequence(const Note *note);
static bool is_sequence_page(const char *page);
static bool is_permanent(RelFileNode rnode);
static HTAB *make_note_table(const char *name);

void
keeper_install(void)
{
	BackgroundWorker worker = {
		.bgw_flags = BGWORKER_SHMEM_ACCESS,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = 1
	};
	Dl_info		library;

	strlcpy(worker.bgw_name, "pagoda keeper", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "pagoda keeper", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "pagoda_keeper_main", BGW_MAXLEN);

	/* The name field is short; a longer path is found again through dynamic_library_path. */
	if (dladdr((void *) keeper_install, &library) != 0 && strlen(library.dli_fname) < BGW_MAXLEN)
		strlcpy(worker.bgw_library_name, library.dli_fname, BGW_MAXLEN);
	else
		strlcpy(worker.bgw_library_name, "pagoda", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

void
keeper_note_write(RelFileNode rnode, ForkNumber fork, BlockNumber block, const char *page)
{
	Note		note = {.magic = NOTE_MAGIC, .rnode = rnode, .fork = fork, .block = block};
	bool		found;

	if (fork != FSM_FORKNUM && !(fork == MAIN_FORKNUM && block == 0 && is_sequence_page(page)))
		return;

	if (noted == NULL)
		noted = make_note_table("pagoda noted pages");
	hash_search(noted, &note, HASH_ENTER, &found);
	if (found)
		return;
	if (note_file < 0)
	{
		char		path[MAXPGPATH];

		pagoda_state_path(path, "pagoda_changed");
		note_file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, pg_file_create_mode);
	}

	/* A lost note costs free space or a gap in a sequence, never data: no reason to fail a write. */
	if (note_file < 0 || write(note_file, &note, sizeof(note)) != sizeof(note))
		ereport(LOG,
				(errcode_for_file_access(), errmsg("pagoda could not note a changed page: %m")));
}

void
pagoda_keeper_main(Datum argument)
{
	HTAB	   *notes;
	HASH_SEQ_STATUS scan;
	Note	   *note;
	int			free_space_pages = 0;
	int			sequences = 0;

	pqsignal(SIGTERM, request_stop);
	BackgroundWorkerUnblockSignals();
	CurrentResourceOwner = ResourceOwnerCreate(NULL, "pagoda keeper");

	while (!stop_requested)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, 0, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}

	wait_for_sessions();

	/* Every dirty page is written, and so noted. */
	RequestCheckpoint(CHECKPOINT_IMMEDIATE | CHECKPOINT_FORCE | CHECKPOINT_WAIT);

	notes = read_notes();
	hash_seq_init(&scan, notes);
	while ((note = hash_seq_search(&scan)) != NULL)
	{
		if (note->fork == FSM_FORKNUM)
			free_space_pages += keep_free_space_page(note);
		else
			sequences += keep_sequence(note);
	}
	if (free_space_pages > 0 || sequences > 0)
		XLogFlush(GetXLogInsertRecPtr());
	ereport(LOG,
			(errmsg("pagoda saved %d free-space pages and %d sequences before stopping", free_space_pages, sequences)));
	proc_exit(0);
}

static void
request_stop(SIGNAL_ARGS)
{
	int			saved_errno = errno;

	stop_requested = true;
	SetLatch(MyLatch);
	errno = saved_errno;
}

/*
 * A sequence must not be used after its page was logged, or the next compute would not know. (It would still be right: a
 * page with log_cnt = 0 makes the next nextval write WAL.)
 */
static void
wait_for_sessions(void)
{
	for (int waited = 0; waited < SESSIONS_WAIT_MS; waited += 10)
	{
		/* This worker is no member of the process array; walsenders are, and stay until the end. */
		if (CountDBBackends(InvalidOid) <= count_walsenders())
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	ereport(LOG, (errmsg("pagoda saves free space and sequences although sessions are still running")));
}

static int
count_walsenders(void)
{
	int			count = 0;

	for (int i = 0; i < max_wal_senders; i++)
	{
		WalSnd	   *sender = &WalSndCtl->walsnds[i];

		SpinLockAcquire(&sender->mutex);
		count += sender->pid != 0;
		SpinLockRelease(&sender->mutex);
	}
	return count;
}

/* Each page once. */
static HTAB *
read_notes(void)
{
	HTAB	   *notes = make_note_table("pagoda pages to keep");
	char		path[MAXPGPATH];
	off_t		position = 0;
	Note		batch[256];
	ssize_t		n;
	int			fd;

	pagoda_state_path(path, "pagoda_changed");
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return notes;
	while ((n = pg_pread(fd, batch, sizeof(batch), position)) >= (ssize_t) sizeof(Note))
	{
		int			count = n / sizeof(Note);

		for (int i = 0; i < count; i++)
			if (batch[i].magic == NOTE_MAGIC && batch[i].fork < PAGODA_FORKS)
				hash_search(notes, &batch[i], HASH_ENTER, NULL);
		position += count * sizeof(Note);
	}
	close(fd);
	return notes;
}

static bool
keep_free_space_page(const Note *note)
{
	SMgrRelation reln = smgropen(note->rnode, InvalidBackendId);
	Buffer		buffer;

	/* Dropped or cut since. */
	if (!is_permanent(note->rnode) || !smgrexists(reln, note->fork) || note->block >= smgrnblocks(reln, note->fork))
		return false;

	/* Like the server itself, take a damaged map for an empty one. */
	buffer = ReadBufferWithoutRelcache(note->rnode, note->fork, note->block, RBM_ZERO_ON_ERROR, NULL, true);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	if (PageIsNew(BufferGetPage(buffer)))
	{
		UnlockReleaseBuffer(buffer);
		return false;
	}
	START_CRIT_SECTION();
	MarkBufferDirty(buffer);
	/* Not a standard page: what looks like its hole is the map. */
	log_newpage_buffer(buffer, false);
	END_CRIT_SECTION();
	UnlockReleaseBuffer(buffer);
	return true;
}

/*
 * log_cnt becomes 0: it counts values that WAL already covers, and the new record covers none. Were it left, the next
 * compute would hand out values without WAL, and repeat them after a crash.
 */
static bool
keep_sequence(const Note *note)
{
	SMgrRelation reln = smgropen(note->rnode, InvalidBackendId);
	Buffer		buffer;
	Page		page;
	HeapTupleHeader tuple;
	Form_pg_sequence_data sequence;

	if (!is_permanent(note->rnode) || !smgrexists(reln, MAIN_FORKNUM) || smgrnblocks(reln, MAIN_FORKNUM) == 0)
		return false;

	buffer = ReadBufferWithoutRelcache(note->rnode, MAIN_FORKNUM, 0, RBM_NORMAL, NULL, true);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	page = BufferGetPage(buffer);
	if (!is_sequence_page(page))
	{
		UnlockReleaseBuffer(buffer);
		return false;
	}
	tuple = (HeapTupleHeader) PageGetItem(page, PageGetItemId(page, FirstOffsetNumber));
	sequence = (Form_pg_sequence_data) ((char *) tuple + tuple->t_hoff);
	if (sequence->log_cnt == 0)
	{
		/* WAL has exactly this value. */
		UnlockReleaseBuffer(buffer);
		return false;
	}
	START_CRIT_SECTION();
	sequence->log_cnt = 0;
	MarkBufferDirty(buffer);
	log_newpage_buffer(buffer, true);
	END_CRIT_SECTION();
	UnlockReleaseBuffer(buffer);
	return true;
}

/* One tuple, and the magic number that sequences keep in their special space. */
static bool
is_sequence_page(const char *page)
{
	const PageHeaderData *header = (const PageHeaderData *) page;

	return header->pd_special == BLCKSZ - MAXALIGN(sizeof(uint32)) &&
		header->pd_lower == SizeOfPageHeaderData + sizeof(ItemIdData) &&
		*(const uint32 *) (page + header->pd_special) == SEQUENCE_MAGIC;
}

/* An unlogged relation has an init fork; storage must not learn of its other forks. */
static bool
is_permanent(RelFileNode rnode)
{
	return !smgrexists(smgropen(rnode, InvalidBackendId), INIT_FORKNUM);
}

static HTAB *
make_note_table(const char *name)
{
	HASHCTL		control = {.keysize = sizeof(Note), .entrysize = sizeof(Note)};

	control.hcxt = TopMemoryContext;
	return hash_create(name, 256, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}
