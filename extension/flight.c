/*
 * flight.c - fetches that are under way, so that two backends do not ask for the same pages.
 *
 * Parallel workers and several scans of one table miss on blocks that somebody is just fetching as read-ahead. They wait
 * for that fetch instead. This saves work only: correctness rests on the block locks (hydrate.c), so a flight that is not
 * registered, because all are taken, does no harm.
 */
#include "pagoda.h"

#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#define FLIGHTS 64

/* Waiting is looked over this often; the fetching backend clears its flight even when it fails. */
#define RECHECK_MS 1000

typedef struct Flight
{
	bool		active;
	uint32		serial;			/* raised at each landing */
	RelFileNode rnode;
	ForkNumber	fork;
	BlockNumber start;
	BlockNumber end;			/* exclusive */
	ConditionVariable landed;
} Flight;

typedef struct FlightShared
{
	LWLock	   *lock;
	Flight		flight[FLIGHTS];
} FlightShared;

static FlightShared *shared = NULL;
static int	mine = -1;
static bool cleanup_registered = false;

static bool same_fork(const Flight *flight, RelFileNode rnode, ForkNumber fork);
static void wait_for(int index, uint32 serial);
static void land_at_exit(int code, Datum argument);

Size
flight_shmem_size(void)
{
	return sizeof(FlightShared);
}

void
flight_shmem_init(LWLock *lock)
{
	bool		found;

	shared = ShmemInitStruct("pagoda flights", sizeof(FlightShared), &found);
	if (found)
		return;
	memset(shared, 0, sizeof(FlightShared));
	shared->lock = lock;
	for (int i = 0; i < FLIGHTS; i++)
		ConditionVariableInit(&shared->flight[i].landed);
}

/*
 * Registers a fetch of at most *count blocks, less when the next ones are under way. If `block` itself is, waits for that
 * and returns false: the caller looks at the local page again.
 */
bool
flight_begin(RelFileNode rnode, ForkNumber fork, BlockNumber block, int *count)
{
	int			free_flight = -1;
	int			other = -1;
	uint32		serial = 0;

	if (!cleanup_registered)
	{
		/*
		 * Not before_shmem_exit: the first miss of a session may come while PG_ENSURE_ERROR_CLEANUP holds the end of that list
		 * (CREATE DATABASE does), which then fails. These run later, and before ProcKill, which was registered earlier.
		 */
		on_shmem_exit(land_at_exit, 0);
		cleanup_registered = true;
	}
	flight_end();

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < FLIGHTS; i++)
	{
		Flight	   *flight = &shared->flight[i];

		if (!flight->active)
			free_flight = i;
		else if (same_fork(flight, rnode, fork))
		{
			if (block >= flight->start && block < flight->end)
			{
				other = i;
				serial = flight->serial;
				break;
			}
			if (block < flight->start)
				*count = Min((BlockNumber) *count, flight->start - block);
		}
	}
	if (other < 0 && free_flight >= 0)
	{
		Flight	   *flight = &shared->flight[free_flight];

		flight->active = true;
		flight->rnode = rnode;
		flight->fork = fork;
		flight->start = block;
		flight->end = block + *count;
		mine = free_flight;
	}
	LWLockRelease(shared->lock);

	if (other < 0)
		return true;
	wait_for(other, serial);
	return false;
}

/* The pages are local, or the fetch failed. */
void
flight_end(void)
{
	int			index = mine;

	if (index < 0)
		return;
	mine = -1;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->flight[index].active = false;
	shared->flight[index].serial++;
	LWLockRelease(shared->lock);
	ConditionVariableBroadcast(&shared->flight[index].landed);
}

static bool
same_fork(const Flight *flight, RelFileNode rnode, ForkNumber fork)
{
	return flight->fork == fork && RelFileNodeEquals(flight->rnode, rnode);
}

/* Cancellable when the caller's state allows it, as every wait on a condition variable. */
static void
wait_for(int index, uint32 serial)
{
	Flight	   *flight = &shared->flight[index];
	TimestampTz limit = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pagoda_request_timeout * 1000L);

	ConditionVariablePrepareToSleep(&flight->landed);
	for (;;)
	{
		bool		landed;

		LWLockAcquire(shared->lock, LW_SHARED);
		landed = flight->serial != serial;
		LWLockRelease(shared->lock);
		if (landed || GetCurrentTimestamp() > limit)
			break;
		(void) ConditionVariableTimedSleep(&flight->landed, RECHECK_MS, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

static void
land_at_exit(int code, Datum argument)
{
	flight_end();
}
