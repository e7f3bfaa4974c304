/*
 * packed.c - pages as they lie in storage, several to a compressed block, and a table of where each is
 * (src/wire/packed-pages.ts, docs/decisions/0024).
 */
#include "pagoda.h"

#include "utils/memutils.h"

/* Raw bytes of one compressed segment. */
#define PACKED_RAW_MAX (64 * 1024)

/* Of the LZ4 that the server was built with, if it was. */
extern int	LZ4_decompress_safe(const char *source, char *target, int compressed, int capacity) __attribute__((weak));

static char *raw_buffer = NULL; /* one segment */

bool
packed_supported(void)
{
	return LZ4_decompress_safe != NULL;
}

/* A number of an answer, at any address. */
static inline uint32
number_at(const char *at)
{
	uint32		number;

	memcpy(&number, at, sizeof(number));
	return number;
}

/*
 * Unpacks pages [skip, skip + count) of `total`. False when these bytes are not packed pages: nothing in them is believed
 * before it was compared with what is there.
 */
bool
packed_unpack(const char *packed, size_t length, int total, int skip, int count, char *pages)
{
	uint32		segments = length < 4 ? 0 : number_at(packed);
	size_t		table = 4 + (size_t) segments * 16 + (size_t) total * 4;
	const char *offsets = packed + 4 + (size_t) segments * 16;
	const char *data = packed + table;
	int			first = 0;

	if (segments == 0 || segments > (uint32) total || table > length)
		return false;
	if (raw_buffer == NULL)
		raw_buffer = MemoryContextAlloc(TopMemoryContext, PACKED_RAW_MAX);

	for (uint32 i = 0; i < segments; i++)
	{
		const char *segment = packed + 4 + (size_t) i * 16;
		uint8		codec = (uint8) segment[0];
		int			n = (uint8) segment[1];
		uint32		raw_bytes = number_at(segment + 4);
		uint32		start = number_at(segment + 8);
		uint32		bytes = number_at(segment + 12);
		const char *raw = data + start;

		if (n > total - first || start > length - table || bytes > length - table - start)
			return false;
		if (first < skip + count && first + n > skip)
		{
			if (codec == 1)
			{
				if (raw_bytes > PACKED_RAW_MAX ||
					LZ4_decompress_safe(raw, raw_buffer, (int) bytes, (int) raw_bytes) != (int) raw_bytes)
					return false;
				raw = raw_buffer;
			}
			else if (codec != 0 || bytes != raw_bytes)
				return false;
			for (int page = Max(first, skip); page < Min(first + n, skip + count); page++)
			{
				uint32		offset = number_at(offsets + (size_t) page * 4);

				if (offset > raw_bytes || raw_bytes - offset < BLCKSZ)
					return false;
				memcpy(pages + (Size) (page - skip) * BLCKSZ, raw + offset, BLCKSZ);
			}
		}
		first += n;
	}
	return first == total;
}
