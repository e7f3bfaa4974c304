/*
 * roles.c - what a customer's role may not get by granting it to itself.
 *
 * Until PostgreSQL 16 whoever may create roles may also grant any role that is not a superuser's: also the ones that run
 * programs and read or write files as the server. Customers may create roles, so these three are refused to everyone but
 * superusers, in all three statements that make somebody a member.
 */
#include "pagoda.h"

#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/acl.h"

static void refuse_role(const char *name);
static void refuse_roles(List *specs);

void
roles_check(Node *statement)
{
	if (superuser())
		return;
	switch (nodeTag(statement))
	{
		case T_GrantRoleStmt:
			{
				GrantRoleStmt *grant = (GrantRoleStmt *) statement;
				ListCell   *cell;

				if (grant->is_grant)
					foreach(cell, grant->granted_roles)
						refuse_role(((AccessPriv *) lfirst(cell))->priv_name);
				break;
			}
		case T_CreateRoleStmt:
			{
				ListCell   *cell;

				foreach(cell, ((CreateRoleStmt *) statement)->options)
				{
					DefElem    *option = (DefElem *) lfirst(cell);

					if (strcmp(option->defname, "addroleto") == 0)
						refuse_roles((List *) option->arg);
				}
				break;
			}
		case T_AlterRoleStmt:
			{
				/* ALTER GROUP … ADD USER */
				AlterRoleStmt *alter = (AlterRoleStmt *) statement;
				ListCell   *cell;

				foreach(cell, alter->options)
					if (alter->action > 0 && strcmp(((DefElem *) lfirst(cell))->defname, "rolemembers") == 0)
						refuse_roles(list_make1(alter->role));
				break;
			}
		default:
			break;
	}
}

static void
refuse_roles(List *specs)
{
	ListCell   *cell;

	foreach(cell, specs)
	{
		RoleSpec   *spec = (RoleSpec *) lfirst(cell);

		if (spec->roletype == ROLESPEC_CSTRING)
			refuse_role(spec->rolename);
	}
}

static void
refuse_role(const char *name)
{
	Oid			role = name == NULL ? InvalidOid : get_role_oid(name, true);

	if (role == ROLE_PG_EXECUTE_SERVER_PROGRAM || role == ROLE_PG_READ_SERVER_FILES ||
		role == ROLE_PG_WRITE_SERVER_FILES)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to grant role \"%s\"", name),
				 errdetail("Files and programs of a compute are not the customer's.")));
}
