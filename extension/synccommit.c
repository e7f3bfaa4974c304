/*
 * synccommit.c - an acknowledged commit is durable, whatever a user sets or cancels.
 *
 * 1. synchronous_commit. Applications switch it off, and must get what they expect from SHOW. So the setting writes into
 *    a variable of ours, and the server's own one stays at "on": every commit waits until the quorum has flushed it.
 * 2. Cancel. A backend that is cancelled while it waits gives up waiting with a warning, and would then report COMMIT. The
 *    transaction callback, which runs before the report, goes back to waiting. Termination closes the connection without
 *    a report, which the server already does.
 */
#include "pagoda.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"

static int	shown_synchronous_commit = SYNCHRONOUS_COMMIT_ON;

static struct config_enum *find_setting(void);
static void at_transaction_end(XactEvent event, void *arg);

void
synccommit_install(void)
{
	struct config_enum *setting = find_setting();

	shown_synchronous_commit = *setting->variable;
	*setting->variable = SYNCHRONOUS_COMMIT_ON;
	assign_synchronous_commit(SYNCHRONOUS_COMMIT_ON, NULL);
	setting->variable = &shown_synchronous_commit;
	setting->assign_hook = NULL;

	RegisterXactCallback(at_transaction_end, NULL);
}

/* Waits until the quorum has flushed WAL up to `lsn`, or the backend is being terminated. */
void
synccommit_wait(XLogRecPtr lsn)
{
	if (lsn == InvalidXLogRecPtr)
		return;
	HOLD_INTERRUPTS();
	while (!ProcDiePending)
	{
		bool		reached;

		LWLockAcquire(SyncRepLock, LW_SHARED);
		reached = !(WalSndCtl->sync_standbys_status & SYNC_STANDBY_DEFINED) ||
			lsn <= WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
		LWLockRelease(SyncRepLock);
		if (reached || !SyncRepRequested())
			break;
		SyncRepWaitForLSN(lsn, true);
	}
	RESUME_INTERRUPTS();
}

static struct config_enum *
find_setting(void)
{
	struct config_generic **all = get_guc_variables();
	int			count = GetNumConfigOptions();

	for (int i = 0; i < count; i++)
	{
		struct config_enum *setting = (struct config_enum *) all[i];

		if (strcmp(all[i]->name, "synchronous_commit") == 0 && all[i]->vartype == PGC_ENUM &&
			setting->variable == &synchronous_commit)
			return setting;
	}
	ereport(FATAL,
			(errcode(ERRCODE_INTERNAL_ERROR), errmsg("pagoda did not find synchronous_commit in this server")));
	return NULL;				/* not reached */
}

static void
at_transaction_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			/* Without a transaction id nothing was committed that anyone could miss; the server does not wait either. */
			if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
				synccommit_wait(XactLastCommitEnd);
			break;
		case XACT_EVENT_PREPARE:
			/* The end of the record is not at hand any more; it was flushed locally. */
			synccommit_wait(GetFlushRecPtr(NULL));
			break;
		default:
			break;
	}
	metrics_flush();
}
