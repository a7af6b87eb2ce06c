/*
 * Reads every file below a folder, and prints what that took in nanoseconds: `read-files read|map FOLDER`.
 *
 * `read` has the bytes copied to a buffer, `map` looks at a byte of each page of a mapping, as a program's own pages
 * are got. No sendfile, by which cat would hand the page cache's pages to /dev/null without looking at a byte.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, BUFFER = 128 * 1024, DESCRIPTORS = 16 };

static char buffer[BUFFER];
static int maps;
static unsigned long long bytes;
static volatile char sink;

static void map(int fd, const char *path, off_t size)
{
	if (size == 0)
		return;
	char *at = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		err(1, "%s", path);
	for (off_t i = 0; i < size; i += PAGE)
		sink = at[i];
	munmap(at, size);
}

static int visit(const char *path, const struct stat *about, int kind, struct FTW *place)
{
	(void)place;
	if (kind != FTW_F || !S_ISREG(about->st_mode))
		return 0;
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		err(1, "%s", path);
	if (maps)
		map(fd, path, about->st_size);
	else
		for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) != 0;)
			if (got < 0)
				err(1, "%s", path);
	close(fd);
	bytes += about->st_size;
	return 0;
}

int main(int count, char **words)
{
	if (count != 3)
		errx(2, "read-files read|map FOLDER");
	maps = strcmp(words[1], "map") == 0;
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	if (nftw(words[2], visit, DESCRIPTORS, FTW_PHYS) != 0)
		err(1, "%s", words[2]);
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%lld %llu\n", (to.tv_sec - from.tv_sec) * 1000000000LL + to.tv_nsec - from.tv_nsec, bytes);
	return 0;
}
