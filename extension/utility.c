/*
 * utility.c - statements that go past the storage manager, or that would weaken durability.
 *
 * CREATE DATABASE with file_copy, ALTER DATABASE SET TABLESPACE and DROP TABLESPACE work on directories: what they look
 * at must be local first. DROP DATABASE removes directories: the base must not bring them back.
 */
#include "pagoda.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "catalog/pg_tablespace.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/tablespace.h"
#include "common/relpath.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/fd.h"
#include "tcop/utility.h"
#include "utils/syscache.h"

/* Settings that ALTER SYSTEM may not touch: each would lose data, or break the compute at its next reload. */
static const char *const protected_settings[] = {
	"archive_cleanup_command", "archive_command", "archive_library", "archive_mode", "data_directory", "data_sync_retry",
	"fsync", "full_page_writes", "hba_file", "hot_standby", "ident_file", "ignore_checksum_failure",
	"ignore_invalid_pages", "max_prepared_transactions", "max_wal_senders", "max_worker_processes", "primary_conninfo",
	"primary_slot_name", "recovery_end_command", "restart_after_crash", "restore_command", "shared_preload_libraries",
	"synchronous_standby_names", "unix_socket_directories", "wal_keep_size", "wal_level", "wal_log_hints",
	"wal_recycle", "wal_sender_timeout", "zero_damaged_pages"
};

static ProcessUtility_hook_type previous_hook = NULL;

static void process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
							ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv,
							DestReceiver *dest, QueryCompletion *qc);
static void run_statement(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
						  ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv,
						  DestReceiver *dest, QueryCompletion *qc);
static void before_create_database(const CreatedbStmt *statement);
static void before_alter_database(const AlterDatabaseStmt *statement);
static void before_drop_tablespace(const DropTableSpaceStmt *statement);
static Oid	before_drop_database(const DropdbStmt *statement);
static void refuse_alter_system(const AlterSystemStmt *statement);
static Oid	default_tablespace_of(Oid db);
static DefElem *find_option(List *options, const char *name);

void
utility_install(void)
{
	previous_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv,
				DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *statement = pstmt->utilityStmt;
	Oid			dropped_database = InvalidOid;

	roles_check(statement);
	switch (nodeTag(statement))
	{
		case T_CreatedbStmt:
			before_create_database((CreatedbStmt *) statement);
			break;
		case T_AlterDatabaseStmt:
			before_alter_database((AlterDatabaseStmt *) statement);
			break;
		case T_DropTableSpaceStmt:
			before_drop_tablespace((DropTableSpaceStmt *) statement);
			break;
		case T_DropdbStmt:
			dropped_database = before_drop_database((DropdbStmt *) statement);
			break;
		case T_AlterSystemStmt:
			refuse_alter_system((AlterSystemStmt *) statement);
			break;
		default:
			break;
	}

	run_statement(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);

	if (OidIsValid(dropped_database))
		base_guard_drop_database(InvalidOid, dropped_database);

	/* The second phase of a two-phase commit waits for the quorum inside the statement; see synccommit.c. */
	if (IsA(statement, TransactionStmt) && ((TransactionStmt *) statement)->kind == TRANS_STMT_COMMIT_PREPARED)
		synccommit_wait(XactLastRecEnd);
}

static void
run_statement(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
			  ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv,
			  DestReceiver *dest, QueryCompletion *qc)
{
	if (previous_hook)
		previous_hook(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
}

/* STRATEGY file_copy copies the directory of the template; wal_log, the default, reads pages like any query. */
static void
before_create_database(const CreatedbStmt *statement)
{
	DefElem    *strategy = find_option(statement->options, "strategy");
	DefElem    *template = find_option(statement->options, "template");
	Oid			db;

	hydrate_all_tablespace_directories();
	if (strategy == NULL || strategy->arg == NULL || pg_strcasecmp(defGetString(strategy), "file_copy") != 0)
		return;
	db = get_database_oid(template != NULL && template->arg != NULL ? defGetString(template) : "template1", true);
	if (OidIsValid(db))
		hydrate_database(InvalidOid, db, true);
}

/*
 * SET TABLESPACE copies the directory, then removes the old one. Once all of it is local, the base has nothing more to
 * say about the old place: the guard may stand before the statement, and stays right if it fails.
 */
static void
before_alter_database(const AlterDatabaseStmt *statement)
{
	DefElem    *option = find_option(statement->options, "tablespace");
	Oid			db;
	Oid			from;
	Oid			to;

	if (option == NULL || option->arg == NULL)
		return;
	hydrate_all_tablespace_directories();
	db = get_database_oid(statement->dbname, true);
	to = get_tablespace_oid(defGetString(option), true);
	from = OidIsValid(db) ? default_tablespace_of(db) : InvalidOid;
	if (!OidIsValid(db) || !OidIsValid(to) || !OidIsValid(from) || from == to)
		return;

	/* The server refuses when the new place already holds relations of this database: it must see them. */
	hydrate_database(to, db, false);
	hydrate_database(from, db, true);
	base_guard_drop_database(from, db);
}

/* The server refuses when files are left in it. */
static void
before_drop_tablespace(const DropTableSpaceStmt *statement)
{
	Oid			spc = get_tablespace_oid(statement->tablespacename, true);

	if (!OidIsValid(spc) || spc == DEFAULTTABLESPACE_OID || spc == GLOBALTABLESPACE_OID)
		return;
	hydrate_tablespace_directory(spc);
	hydrate_tablespace_files(spc);
}

/*
 * The WAL record of DROP DATABASE names the tablespaces in which the server found a directory of the database, and storage
 * removes what it names: so each must have one.
 */
static Oid
before_drop_database(const DropdbStmt *statement)
{
	Oid			db = get_database_oid(statement->dbname, true);
	AgentListEntry *entries;
	Oid			last = InvalidOid;
	int			count;

	if (!OidIsValid(db))
		return InvalidOid;
	hydrate_all_tablespace_directories();
	entries = agent_list(InvalidOid, db, &count);
	for (int i = 0; i < count; i++)
	{
		char	   *path;

		if (entries[i].spc == last || entries[i].spc == GLOBALTABLESPACE_OID)
			continue;
		last = entries[i].spc;
		path = GetDatabasePath(db, last);
		if (MakePGDirectory(path) != 0 && errno != EEXIST)
			ereport(ERROR,
					(errcode_for_file_access(), errmsg("could not create directory \"%s\": %m", path)));
		pfree(path);
	}
	return db;
}

static void
refuse_alter_system(const AlterSystemStmt *statement)
{
	const char *name = statement->setstmt->name;
	bool		protected_setting;

	if (name == NULL)
		return;					/* RESET ALL: the launcher's settings are on the command line */
	protected_setting = pg_strncasecmp(name, "pagoda.", 7) == 0;
	for (int i = 0; i < lengthof(protected_settings); i++)
		protected_setting |= pg_strcasecmp(name, protected_settings[i]) == 0;
	if (protected_setting)
		ereport(ERROR,
				(errcode(ERRCODE_CANT_CHANGE_RUNTIME_PARAM),
				 errmsg("parameter \"%s\" is managed by Pagoda", name),
				 errdetail("Commits are made durable by the safekeepers; this setting is part of how."),
				 errhint("Settings of a role or a database can be changed with ALTER ROLE and ALTER DATABASE.")));
}

static Oid
default_tablespace_of(Oid db)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	Oid			spc = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		spc = ((Form_pg_database) GETSTRUCT(tuple))->dattablespace;
		ReleaseSysCache(tuple);
	}
	return spc;
}

static DefElem *
find_option(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, name) == 0)
			return option;
	}
	return NULL;
}
