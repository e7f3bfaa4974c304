/*
 * metrics.c - counters in <state directory>/pagoda_metrics, mapped by every process.
 *
 * The file is read by the agent without any help of Postgres: 8 bytes "PGDMETR1", u32 number of counters, u32 zero, then
 * that many u64, all little-endian, in the order of enum Metric. src/wire/hydration.ts reads it (decodeExtensionMetrics).
 * The mapping is made by the postmaster and inherited, so the counts outlive a crash restart.
 */
#include "pagoda.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "miscadmin.h"

typedef struct MetricsFile
{
	char		magic[8];
	uint32		count;
	uint32		zero;
	pg_atomic_uint64 value[METRIC_COUNT];
} MetricsFile;

static MetricsFile *metrics = NULL;

/* Reads of pages that were local are too many to touch shared memory each time. */
#define LOCAL_READS_BATCH 256
static uint64 local_reads = 0;

void
metrics_open(void)
{
	char		path[MAXPGPATH];
	int			fd;

	pagoda_state_path(path, "pagoda_metrics");
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, pg_file_create_mode);
	if (fd < 0 || ftruncate(fd, sizeof(MetricsFile)) != 0)
		ereport(FATAL,
				(errcode_for_file_access(), errmsg("pagoda could not create \"%s\": %m", path)));
	metrics = mmap(NULL, sizeof(MetricsFile), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (metrics == MAP_FAILED)
		ereport(FATAL,
				(errcode_for_file_access(), errmsg("pagoda could not map \"%s\": %m", path)));
	close(fd);
	metrics->count = METRIC_COUNT;
	memcpy(metrics->magic, "PGDMETR1", 8);
}

void
metrics_add(Metric metric, uint64 n)
{
	pg_atomic_fetch_add_u64(&metrics->value[metric], n);
}

void
metrics_local_read(void)
{
	if (++local_reads >= LOCAL_READS_BATCH)
		metrics_flush();
}

void
metrics_flush(void)
{
	if (local_reads == 0)
		return;
	metrics_add(METRIC_LOCAL_READS, local_reads);
	local_reads = 0;
}
