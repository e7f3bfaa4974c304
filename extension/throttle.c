/*
 * throttle.c - writers wait when storage cannot keep up with their WAL.
 *
 * The proposer sees how far the pageserver is behind and writes into <data directory>/pagoda_throttle how long a backend
 * has to wait for each MiB of WAL that it makes. Every backend adds up what it owes and pays where nobody else waits for
 * it: when a relation grows (bulk loads, index builds; only others that make the same relation grow wait too), and before
 * a statement that writes begins. Nothing that only reads ever waits here.
 */
#include "pagoda.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "executor/executor.h"
#include "executor/instrument.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/wait_event.h"

/* Layout of the file; src/proposer/throttle-file.ts writes it. Little-endian, as both run on one machine. */
typedef struct ThrottleFile
{
	uint32		magic;
	volatile uint32 us_per_mib; /* THROTTLE_STOP: wait until it is another value */
} ThrottleFile;

#define THROTTLE_MAGIC 0x5468726f
#define THROTTLE_STOP 0xFFFFFFFF
#define THROTTLE_FILE_BYTES 4096

/* One wait: the agent's shutdown and a cancel are seen in between. */
#define SLICE_MS 20
/* Waiting for less is not worth a system call. */
#define WORTHWHILE_US 1000
/* While it holds the lock under which a relation grows. */
#define EXTEND_MS_MAX 100
/* Before a statement: what earlier ones owe. */
#define STATEMENT_MS_MAX 10000
/* Debt is forgiven beyond this: the rate may have been another one by then. */
#define DEBT_US_MAX (2 * 1000 * 1000)

static ThrottleFile *throttle = NULL;
static uint64 seen_bytes = 0;
static uint64 debt_us = 0;

static ExecutorStart_hook_type previous_executor_start = NULL;
static ProcessUtility_hook_type previous_utility = NULL;

static void throttle_executor_start(QueryDesc *query, int eflags);
static void throttle_utility(PlannedStmt *statement, const char *text, bool read_only_tree, ProcessUtilityContext context,
							 ParamListInfo params, QueryEnvironment *environment, DestReceiver *dest, QueryCompletion *completion);

/* In the postmaster; every child inherits the mapping. */
void
throttle_install(void)
{
	char		path[MAXPGPATH];
	ThrottleFile initial = {THROTTLE_MAGIC, 0};
	int			fd;

	pagoda_state_path(path, "pagoda_throttle");
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || ftruncate(fd, THROTTLE_FILE_BYTES) != 0 ||
		pwrite(fd, &initial, sizeof(initial), 0) != sizeof(initial))
		ereport(FATAL, (errcode_for_file_access(), errmsg("could not make \"%s\": %m", path)));
	throttle = mmap(NULL, THROTTLE_FILE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (throttle == MAP_FAILED)
		ereport(FATAL, (errmsg("could not map \"%s\": %m", path)));

	previous_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = throttle_executor_start;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = throttle_utility;
}

/*
 * Adds up and pays. Never with an LWLock or in a critical section (both hold interrupts off): then the debt stays for the
 * next time.
 */
static void
pay(int max_ms)
{
	uint64		bytes = pgWalUsage.wal_bytes - seen_bytes;
	instr_time	start,
				now;

	seen_bytes = pgWalUsage.wal_bytes;
	if (throttle->us_per_mib == 0)
	{
		debt_us = 0;
		return;
	}
	if (throttle->us_per_mib != THROTTLE_STOP)
		debt_us = Min(debt_us + bytes * throttle->us_per_mib / (1024 * 1024), DEBT_US_MAX);
	if ((debt_us < WORTHWHILE_US && throttle->us_per_mib != THROTTLE_STOP) ||
		InterruptHoldoffCount > 0 || CritSectionCount > 0 || MyLatch == NULL)
		return;

	metrics_add(METRIC_THROTTLED, 1);
	INSTR_TIME_SET_CURRENT(start);
	for (;;)
	{
		uint64		waited_us;
		bool		stopped = throttle->us_per_mib == THROTTLE_STOP;

		INSTR_TIME_SET_CURRENT(now);
		INSTR_TIME_SUBTRACT(now, start);
		waited_us = INSTR_TIME_GET_MICROSEC(now);
		if (waited_us >= (uint64) max_ms * 1000 || (!stopped && waited_us >= debt_us))
		{
			metrics_add(METRIC_THROTTLE_MICROSECONDS, waited_us);
			debt_us = waited_us < debt_us ? debt_us - waited_us : 0;
			return;
		}
		/* Not on the latch: whoever sets it means something else, and would end the wait early. */
		(void) WaitLatch(NULL, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 stopped ? SLICE_MS : Min(SLICE_MS, (long) ((debt_us - waited_us) / 1000) + 1),
						 PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
	}
}

/* A relation is about to grow by a page. */
void
throttle_extend(void)
{
	if (throttle != NULL && IsUnderPostmaster)
		pay(EXTEND_MS_MAX);
}

static void
throttle_executor_start(QueryDesc *query, int eflags)
{
	if (throttle->us_per_mib != 0 && (eflags & EXEC_FLAG_EXPLAIN_ONLY) == 0 &&
		(query->operation != CMD_SELECT || query->plannedstmt->hasModifyingCTE))
		pay(STATEMENT_MS_MAX);
	if (previous_executor_start)
		previous_executor_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
}

/* Utility statements that write much: the others go through. */
static bool
writes(const Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_CopyStmt:
			return castNode(CopyStmt, statement)->is_from;
		case T_IndexStmt:
		case T_ReindexStmt:
		case T_ClusterStmt:
		case T_VacuumStmt:
		case T_CreateTableAsStmt:
		case T_RefreshMatViewStmt:
		case T_AlterTableStmt:
		case T_CreatedbStmt:
			return true;
		default:
			return false;
	}
}

static void
throttle_utility(PlannedStmt *statement, const char *text, bool read_only_tree, ProcessUtilityContext context,
				 ParamListInfo params, QueryEnvironment *environment, DestReceiver *dest, QueryCompletion *completion)
{
	if (throttle->us_per_mib != 0 && context == PROCESS_UTILITY_TOPLEVEL && writes(statement->utilityStmt))
		pay(STATEMENT_MS_MAX);
	if (previous_utility)
		previous_utility(statement, text, read_only_tree, context, params, environment, dest, completion);
	else
		standard_ProcessUtility(statement, text, read_only_tree, context, params, environment, dest, completion);
}
