/*
 * patch.c - finds constant tables of the running server and replaces entries in them.
 *
 * The tables lie in the main program's RELRO: mapped read-only after relocation, so a write needs mprotect around it.
 */
#include "pagoda.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct Search
{
	void	   *const *pointers;
	int			count;
	int			objects;		/* objects of the process seen so far */
	int			hits;
	void	   *hit;
} Search;

typedef struct ReadOnlyRange
{
	uintptr_t	start;
	uintptr_t	end;
} ReadOnlyRange;

static int	search_main_program(struct dl_phdr_info *info, size_t size, void *data);
static int	find_relro(struct dl_phdr_info *info, size_t size, void *data);

/*
 * The only place in the main program's writable segments where these pointers stand in this order. NULL entries must be
 * NULL there too. FATAL unless there is exactly one.
 */
void *
pagoda_find_pointers(void *const *pointers, int count, const char *what)
{
	Search		search = {pointers, count, 0, 0, NULL};

	dl_iterate_phdr(search_main_program, &search);
	if (search.hits != 1)
		ereport(FATAL,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("pagoda found %d places in this server that look like %s, expected exactly one", search.hits, what),
				 errhint("This build of PostgreSQL is not supported. Use the PostgreSQL package that the extension was built for.")));
	return search.hit;
}

void
pagoda_patch_memory(void *target, const void *replacement, size_t length)
{
	uintptr_t	page = (uintptr_t) sysconf(_SC_PAGESIZE);
	uintptr_t	start = (uintptr_t) target & ~(page - 1);
	uintptr_t	end = ((uintptr_t) target + length + page - 1) & ~(page - 1);
	ReadOnlyRange relro = {0, 0};

	dl_iterate_phdr(find_relro, &relro);
	if (start < relro.start || end > relro.end)
	{
		/* A server linked without RELRO: the table is ordinary writable data. */
		memcpy(target, replacement, length);
		return;
	}

	if (mprotect((void *) start, end - start, PROT_READ | PROT_WRITE) != 0)
		ereport(FATAL, (errmsg("pagoda could not make a table of the server writable: %m")));
	memcpy(target, replacement, length);
	if (mprotect((void *) start, end - start, PROT_READ) != 0)
		ereport(FATAL, (errmsg("pagoda could not make a table of the server read-only again: %m")));
}

/* dl_iterate_phdr calls this for the main program first; the rest is of no interest. */
static int
search_main_program(struct dl_phdr_info *info, size_t size, void *data)
{
	Search	   *search = data;

	if (search->objects++ > 0)
		return 1;

	for (int i = 0; i < info->dlpi_phnum; i++)
	{
		const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
		void	  **word;
		void	  **last;

		if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_W))
			continue;
		word = (void **) MAXALIGN(info->dlpi_addr + segment->p_vaddr);
		last = (void **) (info->dlpi_addr + segment->p_vaddr + segment->p_memsz) - search->count;
		for (; word <= last; word++)
		{
			if (memcmp(word, search->pointers, sizeof(void *) * search->count) == 0)
			{
				search->hits++;
				search->hit = word;
			}
		}
	}
	return 1;
}

static int
find_relro(struct dl_phdr_info *info, size_t size, void *data)
{
	ReadOnlyRange *range = data;
	uintptr_t	page = (uintptr_t) sysconf(_SC_PAGESIZE);

	for (int i = 0; i < info->dlpi_phnum; i++)
	{
		const ElfW(Phdr) *segment = &info->dlpi_phdr[i];

		if (segment->p_type != PT_GNU_RELRO)
			continue;
		/* The loader protects whole pages: from the one that holds the start to the last full one. */
		range->start = (info->dlpi_addr + segment->p_vaddr) & ~(page - 1);
		range->end = (info->dlpi_addr + segment->p_vaddr + segment->p_memsz) & ~(page - 1);
	}
	return 1;					/* the main program comes first; no other object matters */
}
