/*
 * sizes.c - the SQL functions that measure relation files by stat().
 *
 * Most relation files are not here, so these functions are replaced in the table of built-in functions (fmgr_builtins),
 * which every call by SQL goes through. Sizes of relations are computed from local files or the base; sizes of databases
 * and tablespaces are what the server finds locally plus what is only in the base.
 */
#include "pagoda.h"

#include "access/relation.h"
#include "catalog/pg_class.h"
#include "catalog/pg_tablespace.h"
#include "commands/dbcommands.h"
#include "commands/tablespace.h"
#include "common/relpath.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrtab.h"
#include "utils/rel.h"
#include "utils/relcache.h"

static PGFunction server_database_size_oid;
static PGFunction server_database_size_name;
static PGFunction server_tablespace_size_oid;
static PGFunction server_tablespace_size_name;
static PGFunction server_tablespace_location;

static PGFunction replace_builtin(Oid oid, PGFunction function);
static Datum relation_size(PG_FUNCTION_ARGS);
static Datum table_size(PG_FUNCTION_ARGS);
static Datum indexes_size(PG_FUNCTION_ARGS);
static Datum total_relation_size(PG_FUNCTION_ARGS);
static Datum database_size_oid(PG_FUNCTION_ARGS);
static Datum database_size_name(PG_FUNCTION_ARGS);
static Datum tablespace_size_oid(PG_FUNCTION_ARGS);
static Datum tablespace_size_name(PG_FUNCTION_ARGS);
static Datum tablespace_location(PG_FUNCTION_ARGS);
static int64 bytes_of_relation(Relation relation);
static int64 bytes_of_table(Relation table);
static int64 bytes_of_indexes(Relation table);

void
sizes_install(void)
{
	replace_builtin(F_PG_RELATION_SIZE_REGCLASS_TEXT, relation_size);
	replace_builtin(F_PG_TABLE_SIZE, table_size);
	replace_builtin(F_PG_INDEXES_SIZE, indexes_size);
	replace_builtin(F_PG_TOTAL_RELATION_SIZE, total_relation_size);
	server_database_size_oid = replace_builtin(F_PG_DATABASE_SIZE_OID, database_size_oid);
	server_database_size_name = replace_builtin(F_PG_DATABASE_SIZE_NAME, database_size_name);
	server_tablespace_size_oid = replace_builtin(F_PG_TABLESPACE_SIZE_OID, tablespace_size_oid);
	server_tablespace_size_name = replace_builtin(F_PG_TABLESPACE_SIZE_NAME, tablespace_size_name);
	server_tablespace_location = replace_builtin(F_PG_TABLESPACE_LOCATION, tablespace_location);
}

/* Returns the function that stood there. */
static PGFunction
replace_builtin(Oid oid, PGFunction function)
{
	uint16		index = oid <= fmgr_last_builtin_oid ? fmgr_builtin_oid_index[oid] : InvalidOidBuiltinMapping;
	const FmgrBuiltin *builtin = &fmgr_builtins[index];
	PGFunction	previous;

	if (index == InvalidOidBuiltinMapping || builtin->foid != oid)
		ereport(FATAL,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("pagoda did not find built-in function %u in this server", oid)));
	previous = builtin->func;
	pagoda_patch_memory(unconstify(PGFunction *, &builtin->func), &function, sizeof(function));
	return previous;
}

static Datum
relation_size(PG_FUNCTION_ARGS)
{
	Relation	relation = try_relation_open(PG_GETARG_OID(0), AccessShareLock);
	ForkNumber	fork;
	int64		bytes;

	/* Dropped since the caller's snapshot. */
	if (relation == NULL)
		PG_RETURN_NULL();
	fork = forkname_to_number(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	bytes = hydrate_fork_bytes(relation->rd_node, relation->rd_backend, fork);
	relation_close(relation, AccessShareLock);
	PG_RETURN_INT64(bytes);
}

static Datum
table_size(PG_FUNCTION_ARGS)
{
	Relation	relation = try_relation_open(PG_GETARG_OID(0), AccessShareLock);
	int64		bytes;

	if (relation == NULL)
		PG_RETURN_NULL();
	bytes = bytes_of_table(relation);
	relation_close(relation, AccessShareLock);
	PG_RETURN_INT64(bytes);
}

static Datum
indexes_size(PG_FUNCTION_ARGS)
{
	Relation	relation = try_relation_open(PG_GETARG_OID(0), AccessShareLock);
	int64		bytes;

	if (relation == NULL)
		PG_RETURN_NULL();
	bytes = bytes_of_indexes(relation);
	relation_close(relation, AccessShareLock);
	PG_RETURN_INT64(bytes);
}

static Datum
total_relation_size(PG_FUNCTION_ARGS)
{
	Relation	relation = try_relation_open(PG_GETARG_OID(0), AccessShareLock);
	int64		bytes;

	if (relation == NULL)
		PG_RETURN_NULL();
	bytes = bytes_of_table(relation) + bytes_of_indexes(relation);
	relation_close(relation, AccessShareLock);
	PG_RETURN_INT64(bytes);
}

/* The server's own function checks privileges, then counts local files. */
static Datum
database_size_oid(PG_FUNCTION_ARGS)
{
	Datum		local = server_database_size_oid(fcinfo);

	if (fcinfo->isnull)
		return local;
	PG_RETURN_INT64(DatumGetInt64(local) + hydrate_missing_bytes(InvalidOid, PG_GETARG_OID(0)));
}

static Datum
database_size_name(PG_FUNCTION_ARGS)
{
	Datum		local = server_database_size_name(fcinfo);

	if (fcinfo->isnull)
		return local;
	PG_RETURN_INT64(DatumGetInt64(local) +
					hydrate_missing_bytes(InvalidOid, get_database_oid(NameStr(*PG_GETARG_NAME(0)), false)));
}

static Datum
tablespace_size_oid(PG_FUNCTION_ARGS)
{
	Datum		local;

	hydrate_all_tablespace_directories();
	local = server_tablespace_size_oid(fcinfo);
	if (fcinfo->isnull)
		return local;
	PG_RETURN_INT64(DatumGetInt64(local) + hydrate_missing_tablespace_bytes(PG_GETARG_OID(0)));
}

static Datum
tablespace_size_name(PG_FUNCTION_ARGS)
{
	Datum		local;

	hydrate_all_tablespace_directories();
	local = server_tablespace_size_name(fcinfo);
	if (fcinfo->isnull)
		return local;
	PG_RETURN_INT64(DatumGetInt64(local) +
					hydrate_missing_tablespace_bytes(get_tablespace_oid(NameStr(*PG_GETARG_NAME(0)), false)));
}

static Datum
tablespace_location(PG_FUNCTION_ARGS)
{
	hydrate_all_tablespace_directories();
	return server_tablespace_location(fcinfo);
}

static int64
bytes_of_relation(Relation relation)
{
	int64		bytes = 0;

	for (ForkNumber fork = 0; fork <= MAX_FORKNUM; fork++)
		bytes += hydrate_fork_bytes(relation->rd_node, relation->rd_backend, fork);
	return bytes;
}

/* All forks of the table, of its TOAST table, and of that one's indexes. */
static int64
bytes_of_table(Relation table)
{
	int64		bytes = bytes_of_relation(table);

	if (OidIsValid(table->rd_rel->reltoastrelid))
	{
		Relation	toast = relation_open(table->rd_rel->reltoastrelid, AccessShareLock);

		bytes += bytes_of_relation(toast) + bytes_of_indexes(toast);
		relation_close(toast, AccessShareLock);
	}
	return bytes;
}

static int64
bytes_of_indexes(Relation table)
{
	int64		bytes = 0;
	List	   *indexes;
	ListCell   *cell;

	if (!table->rd_rel->relhasindex)
		return 0;
	indexes = RelationGetIndexList(table);
	foreach(cell, indexes)
	{
		Relation	index = relation_open(lfirst_oid(cell), AccessShareLock);

		bytes += bytes_of_relation(index);
		relation_close(index, AccessShareLock);
	}
	list_free(indexes);
	return bytes;
}
