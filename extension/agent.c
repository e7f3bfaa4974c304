/*
 * agent.c - one backend's connection to the compute agent.
 *
 * Requests are 32 bytes, answers a 16-byte header and a payload; src/wire/hydration.ts describes every field. Requests
 * change nothing, so one whose connection broke is simply sent again on a new one.
 *
 * Pages can be asked for ahead of need (agent_prefetch): the request is sent, the answer is taken from the stream whenever
 * the next one is read, and kept until somebody wants it. It never gets stale, since the base stands still.
 *
 * Several pages may come packed (src/wire/packed-pages.ts), as they lie in storage. LZ4 is the server's own library, when it
 * was built with it; without it, packed pages are not asked for.
 *
 * Waiting honours interrupts whenever the caller's state allows it (no held interrupts, no critical section). A request
 * that was left by an error leaves its answer in the stream; the connection is then thrown away before the next one.
 */
#include "pagoda.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "miscadmin.h"
#include "portability/instr_time.h"
#include "postmaster/interrupt.h"
#include "postmaster/startup.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/*
 * Longest wait when the caller cannot take an error (a drop after commit): then the guard is written unasked. The same
 * transaction may drop a thousand relations: after a failure nothing is asked this way for a while.
 */
#define NOTHROW_TIMEOUT_MS 5000
#define NOTHROW_PAUSE_MS 30000

/* A database of a million relations lists in 96 MB. */
#define LIST_BYTES_MAX (512 * 1024 * 1024)

typedef struct AgentRequest
{
	uint8		op;
	uint8		fork;
	uint16		count;
	uint32		spc;
	uint32		db;
	uint32		rel;
	uint32		block;
	uint32		request_id;
	uint32		flags;
	uint32		zero;
} AgentRequest;

typedef struct AgentResponse
{
	uint8		op;
	uint8		status;
	uint16		count;
	uint32		request_id;
	uint32		value;
	uint32		payload_length;
} AgentResponse;

StaticAssertDecl(sizeof(AgentRequest) == 32, "request layout");
StaticAssertDecl(sizeof(AgentResponse) == 16, "response layout");
StaticAssertDecl(sizeof(AgentListEntry) == 20, "list entry layout");

#define ANSWER_OK 0
#define ANSWER_MISSING 1

/* In the flags of a request for pages: they may come packed. In the value of its answer: they do. */
#define PAGES_PACKED 1

/* Packed pages are no more than this longer than the pages. */
#define PACKED_SLACK 4096

/* Pages asked for ahead. The first slots are for ranges, the others for single pages. */
typedef struct Pending
{
	bool		used;
	bool		arrived;
	AgentRequest request;
	int			count;			/* pages that arrived */
	uint32		packed;			/* bytes of them, packed; 0: they are not */
	char	   *pages;
	int			capacity;		/* of pages */
} Pending;

#define PENDING_RANGES (PAGODA_AHEAD_MAX + 1)
#define PENDING_MAX 32

/* What the request is about, for messages. */
typedef struct Exchange
{
	AgentRequest request;
	AgentResponse response;
	char	   *buffer;			/* where the payload goes, or NULL: palloc'd */
	size_t		capacity;		/* of buffer */
	const AheadRange *ahead;	/* to ask for behind this request */
	int			nahead;
	bool		nothrow;
	instr_time	start;
	long		broken_since_ms;	/* since start; -1 while the connection works */
	bool		hung;			/* connected, but no answer in time: not asked for another period */
	char		reason[256];	/* why it failed last */
} Exchange;

static int	agent_socket = -1;
static bool agent_busy = false; /* an answer that nobody will take may be in the stream */
static bool agent_spoiled = false;	/* the agent cannot make sense of what comes next */
static WaitEventSet *agent_waits = NULL;
static int	agent_socket_event = -1;
static uint32 agent_last_id = 0;
static TimestampTz nothrow_failed_at = 0;
static Pending pending[PENDING_MAX];
static Pending *wanted = NULL;	/* being taken: not to be given to another request */
static bool takes_packed = true;
static char *packed_buffer = NULL;	/* an answer before it is unpacked */

static bool run_exchange(Exchange *x);
static bool try_exchange(Exchange *x, bool *retry);
static bool receive_answer(Exchange *x, const Pending *awaited);
static bool receive_pending(Exchange *x, Pending *entry);
static void send_prefetch(AgentRequest request, BlockNumber block, int count);
static Pending *find_pending(const AgentRequest *request);
static Pending *free_pending(int count);
static int	take_pending(Exchange *x, Pending *entry);
static uint32 packing(int count);
static bool receive_packed(Exchange *x);
static bool connect_agent(Exchange *x);
static void disconnect_agent(void);
static bool transfer(Exchange *x, char *data, size_t length, bool sending);
static bool wait_agent(Exchange *x, uint32 events, long timeout_ms);
static void take_interrupts(Exchange *x);
static long elapsed_ms(const Exchange *x);
static bool fail_request(Exchange *x);
static void describe(const AgentRequest *request, char *text, size_t length);

bool
agent_relation_sizes(RelFileNode rnode, BlockNumber *nblocks, bool nothrow)
{
	uint32		sizes[PAGODA_FORKS];
	Exchange	x = {
		.request = {.op = AGENT_NBLOCKS, .fork = AGENT_ALL_FORKS, .spc = rnode.spcNode, .db = rnode.dbNode, .rel = rnode.relNode},
		.buffer = (char *) sizes,
		.capacity = sizeof(sizes),
		.nothrow = nothrow
	};

	if (nothrow && nothrow_failed_at != 0 &&
		!TimestampDifferenceExceeds(nothrow_failed_at, GetCurrentTimestamp(), NOTHROW_PAUSE_MS))
		return false;

	metrics_add(METRIC_SIZE_REQUESTS, 1);
	if (!run_exchange(&x))
		return false;
	if (x.response.status == ANSWER_MISSING)
	{
		for (int fork = 0; fork < PAGODA_FORKS; fork++)
			nblocks[fork] = BASE_ABSENT;
		return true;
	}
	if (x.response.payload_length != sizeof(sizes))
	{
		snprintf(x.reason, sizeof(x.reason), "the answer holds %u bytes instead of %zu", x.response.payload_length, sizeof(sizes));
		return fail_request(&x);
	}
	for (int fork = 0; fork < PAGODA_FORKS; fork++)
		nblocks[fork] = sizes[fork];
	return true;
}

int
agent_get_pages(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count, char *pages, const AheadRange *ahead, int nahead)
{
	Exchange	x = {
		.request = {.op = AGENT_GETPAGES, .fork = fork, .count = count, .spc = rnode.spcNode, .db = rnode.dbNode, .rel = rnode.relNode, .block = block},
		.buffer = pages,
		.capacity = (size_t) count * BLCKSZ,
		.ahead = ahead,
		.nahead = nahead
	};
	Pending    *entry = agent_busy || agent_spoiled ? NULL : find_pending(&x.request);

	if (entry != NULL)
	{
		int			taken = take_pending(&x, entry);

		if (taken > 0)
			return taken;
	}

	metrics_add(METRIC_FETCH_REQUESTS, 1);
	run_exchange(&x);
	if (x.response.status == ANSWER_MISSING)
	{
		snprintf(x.reason, sizeof(x.reason), "storage says that the relation does not exist");
		fail_request(&x);
	}
	if (x.response.payload_length != (uint32) x.response.count * BLCKSZ || x.response.count == 0 || x.response.count > count)
	{
		snprintf(x.reason, sizeof(x.reason), "storage sent %u bytes for %u pages", x.response.payload_length, x.response.count);
		fail_request(&x);
	}
	metrics_add(METRIC_PAGES_FETCHED, x.response.count);
	return x.response.count;
}

/* A hint: does nothing when there is no connection yet, or no room. */
void
agent_prefetch(RelFileNode rnode, ForkNumber fork, BlockNumber block, int count)
{
	AgentRequest request = {.op = AGENT_GETPAGES, .fork = fork, .spc = rnode.spcNode, .db = rnode.dbNode, .rel = rnode.relNode};

	if (agent_socket >= 0 && !agent_busy && !agent_spoiled)
		send_prefetch(request, block, count);
}

AgentListEntry *
agent_list(Oid spc, Oid db, int *count)
{
	Exchange	x = {
		.request = {.op = AGENT_LISTDB, .spc = spc, .db = db}
	};

	metrics_add(METRIC_LIST_REQUESTS, 1);
	run_exchange(&x);
	*count = 0;
	if (x.response.status == ANSWER_MISSING)
		return NULL;
	if (x.response.payload_length % sizeof(AgentListEntry) != 0)
	{
		snprintf(x.reason, sizeof(x.reason), "a list of %u bytes is not a whole number of entries", x.response.payload_length);
		fail_request(&x);
	}
	*count = x.response.payload_length / sizeof(AgentListEntry);
	return (AgentListEntry *) x.buffer;
}

bool
agent_database_exists(Oid db)
{
	uint64		bytes = 0;
	Exchange	x = {
		.request = {.op = AGENT_DBSIZE, .db = db},
		.buffer = (char *) &bytes,
		.capacity = sizeof(bytes)
	};

	metrics_add(METRIC_SIZE_REQUESTS, 1);
	run_exchange(&x);
	return x.response.status == ANSWER_OK && bytes > 0;
}

bool
agent_hinted(RelFileNode rnode, ForkNumber fork, BlockNumber block)
{
	AgentRequest request = {.op = AGENT_GETPAGES, .fork = fork, .spc = rnode.spcNode, .db = rnode.dbNode, .rel = rnode.relNode, .block = block};
	Pending    *entry = find_pending(&request);

	return entry != NULL && entry->request.count == 1;
}

/*
 * Sends and receives, over as many connections as it takes. False only with `nothrow`; else an error is raised that names
 * relation, block, socket and the next step.
 */
static bool
run_exchange(Exchange *x)
{
	bool		palloced = x->buffer == NULL;
	instr_time	now;

	INSTR_TIME_SET_CURRENT(x->start);
	x->broken_since_ms = -1;
	strlcpy(x->reason, "no answer", sizeof(x->reason));

	for (;;)
	{
		bool		retry = true;
		long		limit_ms = x->nothrow ? NOTHROW_TIMEOUT_MS : pagoda_connect_timeout * 1000L;

		if (try_exchange(x, &retry))
			break;
		disconnect_agent();
		if (palloced && x->buffer != NULL)
		{
			pfree(x->buffer);
			x->buffer = NULL;
		}
		if (x->broken_since_ms < 0)
			x->broken_since_ms = elapsed_ms(x);
		if (!retry || x->hung || elapsed_ms(x) - x->broken_since_ms >= limit_ms)
			return fail_request(x);

		/* The agent may be restarting: come back in a moment, unless the user has had enough. */
		take_interrupts(x);
		pg_usleep(50 * 1000);
		take_interrupts(x);
	}

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, x->start);
	metrics_add(METRIC_WAIT_MICROSECONDS, INSTR_TIME_GET_MICROSEC(now));
	return true;
}

/* One attempt. On failure x->reason says why; *retry is false when another attempt would not help. */
static bool
try_exchange(Exchange *x, bool *retry)
{
	if (agent_busy || agent_spoiled)
		disconnect_agent();
	if (agent_socket < 0 && !connect_agent(x))
		return false;

	x->request.request_id = ++agent_last_id;
	x->request.flags = x->request.op == AGENT_GETPAGES ? packing(x->request.count) : 0;
	agent_busy = true;
	if (!transfer(x, (char *) &x->request, sizeof(x->request), true))
		return false;
	for (int i = 0; i < x->nahead; i++)
		send_prefetch(x->request, x->ahead[i].block, x->ahead[i].count);
	if (!receive_answer(x, NULL))
		return false;

	if (x->response.status != ANSWER_OK && x->response.status != ANSWER_MISSING)
	{
		/* The agent has retried what can be retried; its text is cut to what a message holds. */
		size_t		length = Min(x->response.payload_length, sizeof(x->reason) - 1);

		*retry = false;
		if (!transfer(x, x->reason, length, false))
			return false;
		x->reason[length] = '\0';
		return false;
	}

	if (x->buffer == NULL)
	{
		if (x->response.payload_length > LIST_BYTES_MAX)
		{
			snprintf(x->reason, sizeof(x->reason), "the answer is %u bytes long", x->response.payload_length);
			*retry = false;
			return false;
		}
		x->buffer = MemoryContextAllocHuge(CurrentMemoryContext, Max(x->response.payload_length, 1));
		x->capacity = x->response.payload_length;
	}
	if (x->response.op == AGENT_GETPAGES && x->response.status == ANSWER_OK && x->response.value == PAGES_PACKED)
		return receive_packed(x);
	if (x->response.payload_length > x->capacity)
	{
		snprintf(x->reason, sizeof(x->reason), "the answer is %u bytes long, at most %zu were expected",
				 x->response.payload_length, x->capacity);
		*retry = false;
		return false;
	}
	if (!transfer(x, x->buffer, x->response.payload_length, false))
		return false;
	agent_busy = false;
	return true;
}

/*
 * Reads answers until the header of this exchange's own one is in x->response, or until `awaited` has arrived (or was
 * given up). Answers to requests ahead are put aside on the way.
 */
static bool
receive_answer(Exchange *x, const Pending *awaited)
{
	for (;;)
	{
		Pending    *entry = NULL;

		if (awaited != NULL && (awaited->arrived || !awaited->used))
			return true;
		if (!transfer(x, (char *) &x->response, sizeof(x->response), false))
			return false;
		if (awaited == NULL && x->response.request_id == x->request.request_id && x->response.op == x->request.op)
			return true;
		for (int i = 0; i < PENDING_MAX; i++)
			if (pending[i].used && !pending[i].arrived && pending[i].request.request_id == x->response.request_id)
				entry = &pending[i];
		if (entry == NULL)
		{
			snprintf(x->reason, sizeof(x->reason), "the answer belongs to another request (op %u, id %u)",
					 x->response.op, x->response.request_id);
			return false;
		}
		if (!receive_pending(x, entry))
			return false;
	}
}

static bool
receive_pending(Exchange *x, Pending *entry)
{
	uint32		length = x->response.payload_length;

	bool		packed = x->response.value == PAGES_PACKED;

	if (x->response.status == ANSWER_OK && x->response.count > 0 && x->response.count <= entry->request.count &&
		(packed ? length <= (uint32) entry->request.count * BLCKSZ + PACKED_SLACK : length == (uint32) x->response.count * BLCKSZ))
	{
		if (!transfer(x, entry->pages, length, false))
			return false;
		entry->count = x->response.count;
		entry->packed = packed ? length : 0;
		entry->arrived = true;
		metrics_add(METRIC_PAGES_FETCHED, entry->count);
		return true;
	}

	/* Whoever needs the page will ask again, and get the error. */
	entry->used = false;
	while (length > 0)
	{
		char		text[256];
		uint32		part = Min(length, sizeof(text));

		if (!transfer(x, text, part, false))
			return false;
		length -= part;
	}
	return true;
}

/* Sends a request whose answer nobody waits for. */
static void
send_prefetch(AgentRequest request, BlockNumber block, int count)
{
	Pending    *entry;
	ssize_t		sent;

	request.block = block;
	request.count = count;
	request.flags = packing(count);
	if (find_pending(&request) != NULL || (entry = free_pending(count)) == NULL)
		return;
	request.request_id = ++agent_last_id;
	sent = send(agent_socket, &request, sizeof(request), MSG_NOSIGNAL | MSG_DONTWAIT);
	if (sent != sizeof(request))
	{
		/* Half a request spoils the stream. */
		agent_spoiled |= sent > 0;
		return;
	}
	metrics_add(METRIC_FETCH_REQUESTS, 1);
	if (entry->capacity < count)
	{
		entry->capacity = 0;
		if (entry->pages != NULL)
			pfree(entry->pages);
		entry->pages = NULL;
		entry->pages = MemoryContextAlloc(TopMemoryContext, (Size) count * BLCKSZ + PACKED_SLACK);
		entry->capacity = count;
	}
	entry->request = request;
	entry->arrived = false;
	entry->used = true;
}

/* The entry whose range holds the first block of a request. */
static Pending *
find_pending(const AgentRequest *request)
{
	for (int i = 0; i < PENDING_MAX; i++)
	{
		const AgentRequest *asked = &pending[i].request;

		if (pending[i].used && asked->rel == request->rel && asked->fork == request->fork && asked->db == request->db &&
			asked->spc == request->spc && request->block >= asked->block &&
			request->block - asked->block < (BlockNumber) (pending[i].arrived ? pending[i].count : asked->count))
			return &pending[i];
	}
	return NULL;
}

/* A free entry, or the one that arrived longest ago; NULL when all are under way. */
static Pending *
free_pending(int count)
{
	Pending    *oldest = NULL;
	int			first = count > 1 ? 0 : PENDING_RANGES;
	int			last = count > 1 ? PENDING_RANGES : PENDING_MAX;

	for (int i = first; i < last; i++)
	{
		if (!pending[i].used)
			return &pending[i];
		if (pending[i].arrived && &pending[i] != wanted && (oldest == NULL || pending[i].request.request_id < oldest->request.request_id))
			oldest = &pending[i];
	}
	if (oldest != NULL)
		oldest->used = false;
	return oldest;
}

/* Waits for pages asked for ahead and hands them over. 0 when they have to be asked for again. */
static int
take_pending(Exchange *x, Pending *entry)
{
	int			skip;
	int			count;

	INSTR_TIME_SET_CURRENT(x->start);
	x->broken_since_ms = -1;
	wanted = entry;
	for (int i = 0; i < x->nahead; i++)
		send_prefetch(x->request, x->ahead[i].block, x->ahead[i].count);
	if (!entry->arrived)
	{
		instr_time	now;
		bool		received;

		agent_busy = true;
		received = receive_answer(x, entry);
		if (!received)
			disconnect_agent();
		agent_busy = false;
		if (x->hung)
			fail_request(x);
		if (!received || !entry->used)
			return 0;
		INSTR_TIME_SET_CURRENT(now);
		INSTR_TIME_SUBTRACT(now, x->start);
		metrics_add(METRIC_WAIT_MICROSECONDS, INSTR_TIME_GET_MICROSEC(now));
	}

	skip = x->request.block - entry->request.block;
	count = Min(entry->count - skip, x->request.count);
	entry->used = false;
	if (skip < 0 || count <= 0)
		return 0;				/* fewer came than were asked for */
	if (entry->packed == 0)
		memcpy(x->buffer, entry->pages + (Size) skip * BLCKSZ, (Size) count * BLCKSZ);
	else if (!packed_unpack(entry->pages, entry->packed, entry->count, skip, count, x->buffer))
	{
		takes_packed = false;
		return 0;
	}
	return count;
}

/* The flags of a request for so many pages: a single one is not worth it. */
static uint32
packing(int count)
{
	return count > 1 && takes_packed && packed_supported() ? PAGES_PACKED : 0;
}

/* The payload of an answer, packed: afterwards it is as if it had not been. */
static bool
receive_packed(Exchange *x)
{
	uint32		length = x->response.payload_length;
	int			count = x->response.count;

	if (length > x->capacity + PACKED_SLACK || (Size) count * BLCKSZ > x->capacity || count > PAGODA_FETCH_MAX)
	{
		snprintf(x->reason, sizeof(x->reason), "%d packed pages in %u bytes do not fit", count, length);
		return false;
	}
	if (packed_buffer == NULL)
		packed_buffer = MemoryContextAlloc(TopMemoryContext, (Size) PAGODA_FETCH_MAX * BLCKSZ + PACKED_SLACK);
	if (!transfer(x, packed_buffer, length, false))
		return false;
	if (!packed_unpack(packed_buffer, length, count, 0, count, x->buffer))
	{
		/* The next attempt gets them as they are, or an error that says what is damaged. */
		takes_packed = false;
		strlcpy(x->reason, "packed pages do not unpack", sizeof(x->reason));
		return false;
	}
	x->response.payload_length = (uint32) count * BLCKSZ;
	agent_busy = false;
	return true;
}

static bool
connect_agent(Exchange *x)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	strlcpy(address.sun_path, pagoda_agent_socket, sizeof(address.sun_path));

	/* Close-on-exec: a program started by COPY or an archive command must not inherit it. */
	ReserveExternalFD();
	agent_socket = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (agent_socket < 0)
	{
		snprintf(x->reason, sizeof(x->reason), "could not make a socket: %s", strerror(errno));
		ReleaseExternalFD();
		return false;
	}
	if (connect(agent_socket, (struct sockaddr *) &address, sizeof(address)) != 0)
	{
		snprintf(x->reason, sizeof(x->reason), "could not connect: %s", strerror(errno));
		disconnect_agent();
		return false;
	}

	agent_waits = CreateWaitEventSet(TopMemoryContext, 3);
	AddWaitEventToSet(agent_waits, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	if (IsUnderPostmaster)
		AddWaitEventToSet(agent_waits, WL_POSTMASTER_DEATH, PGINVALID_SOCKET, NULL, NULL);
	agent_socket_event = AddWaitEventToSet(agent_waits, WL_SOCKET_READABLE, agent_socket, NULL, NULL);
	metrics_add(METRIC_CONNECTS, 1);
	return true;
}

static void
disconnect_agent(void)
{
	for (int i = 0; i < PENDING_MAX; i++)
		if (!pending[i].arrived)
			pending[i].used = false;
	if (agent_waits != NULL)
	{
		FreeWaitEventSet(agent_waits);
		agent_waits = NULL;
	}
	if (agent_socket >= 0)
	{
		close(agent_socket);
		agent_socket = -1;
		ReleaseExternalFD();
	}
	agent_busy = false;
	agent_spoiled = false;
}

/* Moves exactly `length` bytes. False when the connection broke or the time is up. */
static bool
transfer(Exchange *x, char *data, size_t length, bool sending)
{
	while (length > 0)
	{
		ssize_t		n = sending ? send(agent_socket, data, length, MSG_NOSIGNAL) : recv(agent_socket, data, length, 0);

		if (n > 0)
		{
			data += n;
			length -= n;
			continue;
		}
		if (n == 0)
		{
			strlcpy(x->reason, "the agent closed the connection", sizeof(x->reason));
			return false;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK)
		{
			snprintf(x->reason, sizeof(x->reason), "the connection broke: %s", strerror(errno));
			return false;
		}
		if (!wait_agent(x, sending ? WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE,
						x->nothrow ? NOTHROW_TIMEOUT_MS : pagoda_request_timeout * 1000L))
			return false;
	}
	return true;
}

/* Waits until the socket is ready. False when `timeout_ms` passed since the request began. */
static bool
wait_agent(Exchange *x, uint32 events, long timeout_ms)
{
	bool		latch_was_set = false;
	bool		ready = false;

	ModifyWaitEvent(agent_waits, agent_socket_event, events, NULL);
	while (!ready)
	{
		WaitEvent	event[3];
		long		left_ms = timeout_ms - elapsed_ms(x);
		int			n;

		if (left_ms <= 0)
		{
			snprintf(x->reason, sizeof(x->reason), "no answer within %ld s", timeout_ms / 1000);
			x->hung = true;
			break;
		}
		n = WaitEventSetWait(agent_waits, left_ms, event, lengthof(event), PG_WAIT_EXTENSION);
		for (int i = 0; i < n; i++)
		{
			if (event[i].events & WL_POSTMASTER_DEATH)
				proc_exit(1);
			if (event[i].events & WL_LATCH_SET)
			{
				ResetLatch(MyLatch);
				latch_was_set = true;
			}
			if (event[i].events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE))
				ready = true;
		}
		if (latch_was_set && !ready)
			take_interrupts(x);
	}

	/* Whoever set it meant the caller's own loop, not this one. */
	if (latch_was_set)
		SetLatch(MyLatch);
	return ready;
}

static void
take_interrupts(Exchange *x)
{
	if (x->nothrow)
		return;
	if (AmStartupProcess())
	{
		HandleStartupProcInterrupts();
		return;
	}
	CHECK_FOR_INTERRUPTS();

	/*
	 * Launchers and background workers are told to stop by this flag alone. No FATAL: the autovacuum launcher's exit code
	 * would count as a crash; after an error it looks at the flag.
	 */
	if (ShutdownRequestPending && INTERRUPTS_CAN_BE_PROCESSED())
		ereport(ERROR,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("terminating while waiting for storage, due to administrator command")));
}

static long
elapsed_ms(const Exchange *x)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, x->start);
	return (long) INSTR_TIME_GET_MILLISEC(now);
}

/* Raises the error; returns false only with `nothrow`. */
static bool
fail_request(Exchange *x)
{
	char		about[128];

	metrics_add(METRIC_REQUEST_FAILURES, 1);
	if (x->nothrow)
	{
		nothrow_failed_at = GetCurrentTimestamp();
		return false;
	}
	describe(&x->request, about, sizeof(about));
	ereport(ERROR,
			(errcode(ERRCODE_IO_ERROR),
			 errmsg("could not get %s from storage: %s", about, x->reason),
			 errdetail("Compute agent socket: \"%s\".", pagoda_agent_socket),
			 errhint("Nothing was changed; run the statement again. If it fails again, look at the compute agent's log and at the pageserver's state, or restart the endpoint.")));
	return false;
}

static void
describe(const AgentRequest *request, char *text, size_t length)
{
	switch (request->op)
	{
		case AGENT_GETPAGES:
			snprintf(text, length, "block %u (%u pages) of relation %u/%u/%u fork %s",
					 request->block, request->count, request->spc, request->db, request->rel, forkNames[request->fork]);
			break;
		case AGENT_NBLOCKS:
			snprintf(text, length, "the size of relation %u/%u/%u", request->spc, request->db, request->rel);
			break;
		case AGENT_LISTDB:
			snprintf(text, length, "the list of relations of database %u in tablespace %u", request->db, request->spc);
			break;
		default:
			snprintf(text, length, "the size of database %u", request->db);
			break;
	}
}
