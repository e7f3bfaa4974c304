/*
 * pagoda.c - load, settings, shared memory.
 *
 * Everything is installed from _PG_init in the postmaster, so that every child inherits it.
 */
#include "pagoda.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/un.h>
#include <unistd.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

char	   *pagoda_agent_socket = NULL;
char	   *pagoda_state_dir = NULL;
bool		pagoda_disabled = false;
int			pagoda_readahead_max = PAGODA_FETCH_MAX;
int			pagoda_relation_slots = 262144;
int			pagoda_connect_timeout = 30;
int			pagoda_request_timeout = 150;

static shmem_request_hook_type previous_shmem_request = NULL;
static shmem_startup_hook_type previous_shmem_startup = NULL;

static void define_settings(void);
static void check_server_version(void);
static void die_with_agent(void);
static void request_shmem(void);
static void startup_shmem(void);

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pagoda must be loaded by shared_preload_libraries"),
				 errhint("The compute agent starts Postgres with it; it cannot be loaded later.")));

	define_settings();
	die_with_agent();

	if (pagoda_disabled)
	{
		ereport(LOG, (errmsg("pagoda is disabled: relation files are used as they are, nothing is fetched")));
		return;
	}

	if (pagoda_agent_socket == NULL || pagoda_agent_socket[0] == '\0')
		ereport(FATAL,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("pagoda.agent_socket is not set"),
				 errdetail("This data directory holds only what was changed on this compute; without the compute agent, pages would read as zeros."),
				 errhint("Start the endpoint with Pagoda, not with pg_ctl.")));
	if (strlen(pagoda_agent_socket) >= sizeof(((struct sockaddr_un *) NULL)->sun_path))
		ereport(FATAL,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("pagoda.agent_socket is longer than a unix socket path may be: \"%s\"", pagoda_agent_socket)));

	check_server_version();
	metrics_open();
	storage_install();
	sizes_install();
	utility_install();
	synccommit_install();
	keeper_install();
	throttle_install();

	previous_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	previous_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}

void
pagoda_state_path(char *path, const char *name)
{
	if (pagoda_state_dir != NULL && pagoda_state_dir[0] != '\0')
		snprintf(path, MAXPGPATH, "%s/%s", pagoda_state_dir, name);
	else
		snprintf(path, MAXPGPATH, "%s/%s", DataDir, name);
}

/*
 * Without its agent a Postgres has no proposer: every commit would wait for ever, and the front door would go on sending
 * clients to it. It ends with the agent, however that ends (PR_SET_PDEATHSIG). The agent gives its pid in the environment;
 * without one (tests under pg_ctl) nothing is done.
 */
static void
die_with_agent(void)
{
	const char *agent = getenv("PAGODA_AGENT_PID");

	if (agent == NULL)
		return;
	if (prctl(PR_SET_PDEATHSIG, SIGQUIT) != 0)
		ereport(FATAL, (errmsg("cannot ask the kernel to end Postgres with its agent: %m")));
	if (getppid() != (pid_t) atoi(agent))
		ereport(FATAL, (errmsg("the compute agent (pid %s) ended while Postgres was starting", agent)));
}

static void
define_settings(void)
{
	DefineCustomStringVariable("pagoda.agent_socket",
							   "Unix socket of the compute agent, which serves pages.",
							   NULL, &pagoda_agent_socket, "", PGC_POSTMASTER, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomStringVariable("pagoda.state_dir",
							   "Folder of the guard log and the metrics file; empty means the data directory.",
							   NULL, &pagoda_state_dir, "", PGC_POSTMASTER, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomBoolVariable("pagoda.disabled",
							 "Loads the library without effect. Only for a complete, ordinary data directory.",
							 NULL, &pagoda_disabled, false, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pagoda.readahead_max",
							"Most pages fetched at once by a sequential reader.",
							NULL, &pagoda_readahead_max, PAGODA_FETCH_MAX, 1, PAGODA_FETCH_MAX,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pagoda.relation_slots",
							"Relations whose base size and guards fit in shared memory (32 bytes each, rounded up to a power of two).",
							NULL, &pagoda_relation_slots, 262144, 1024, 1 << 26,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pagoda.connect_timeout",
							"How long a broken connection to the agent is retried before the query fails.",
							NULL, &pagoda_connect_timeout, 30, 1, 3600,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("pagoda.request_timeout",
							"How long the agent may take to answer before the query fails.",
							NULL, &pagoda_request_timeout, 150, 1, 3600,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	MarkGUCPrefixReserved("pagoda");
}

/*
 * The storage manager's table is no ABI, not even between minor releases: the order of the pointers can be checked in
 * memory (patch.c), their signatures cannot.
 */
static void
check_server_version(void)
{
	const char *running = GetConfigOption("server_version_num", false, false);

	if (atoi(running) != PG_VERSION_NUM)
		ereport(FATAL,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("pagoda was built for PostgreSQL %d, this server is %s", PG_VERSION_NUM, running),
				 errhint("Build the extension again with the headers of this server: make -C extension.")));
}

static void
request_shmem(void)
{
	if (previous_shmem_request)
		previous_shmem_request();
	RequestAddinShmemSpace(base_shmem_size());
	RequestAddinShmemSpace(flight_shmem_size());
}

static void
startup_shmem(void)
{
	if (previous_shmem_startup)
		previous_shmem_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	base_shmem_init();
	flight_shmem_init(base_flight_lock());
	LWLockRelease(AddinShmemInitLock);
}
