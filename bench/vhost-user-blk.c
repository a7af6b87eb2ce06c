/*
 * The client of vhost-user-blk.ts: drives one queue of a block device that was set up for it, and prints the
 * nanoseconds that its reads took. Descriptor 3 is the shared memory, 4 the doorbell, 5 the interrupt.
 *
 *   vhost-user-blk random|sequential DEPTH BYTES COUNT CAPACITY
 *
 * Layout of the memory, which the script knows too: the rings in the first pages, headers and status bytes from
 * 64 KiB, data from 1 MiB, one piece of BYTES a request (virtio 1.2 §2.7, §5.2).
 */
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define QUEUE 128
#define AVAIL 0x1000
#define USED 0x2000
#define HEADERS 0x10000
#define DATA 0x100000
#define SECTOR 512

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	int random = strcmp(argv[1], "random") == 0;
	unsigned depth = atoi(argv[2]), bytes = atoi(argv[3]);
	long count = atol(argv[4]), capacity = atol(argv[5]);
	struct stat stat;
	if (fstat(3, &stat))
		fail("fstat");
	char *memory = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	struct vring_desc *desc = (void *)memory;
	struct vring_avail *avail = (void *)(memory + AVAIL);
	struct vring_used *used = (void *)(memory + USED);
	volatile uint16_t *used_event = &avail->ring[QUEUE];
	volatile uint16_t *avail_event = (void *)&used->ring[QUEUE];
	struct {
		struct virtio_blk_outhdr header;
		uint8_t status;
	} *requests = (void *)(memory + HEADERS);
	for (unsigned i = 0; i < depth; i++) {
		uint64_t request = HEADERS + i * sizeof *requests;
		desc[3 * i] = (struct vring_desc){ request, sizeof requests->header, VRING_DESC_F_NEXT, 3 * i + 1 };
		desc[3 * i + 1] = (struct vring_desc){ DATA + (uint64_t)i * bytes, bytes,
						       VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 3 * i + 2 };
		desc[3 * i + 2] = (struct vring_desc){ request + sizeof requests->header, 1, VRING_DESC_F_WRITE, 0 };
	}
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	uint64_t seed = 1, blocks = capacity / bytes, one = 1;
	/* The rings may have been used before, by an earlier round. */
	uint16_t added = avail->idx, seen = added, kicked = added;
	long submitted = 0, done = 0;
	unsigned free[QUEUE], free_count = depth;
	for (unsigned i = 0; i < depth; i++)
		free[i] = i;
	while (done < count) {
		while (free_count > 0 && submitted < count) {
			unsigned i = free[--free_count];
			seed = seed * 6364136223846793005u + 1442695040888963407u;
			uint64_t block = random ? (seed >> 33) % blocks : submitted % blocks;
			requests[i].header = (struct virtio_blk_outhdr){ VIRTIO_BLK_T_IN, 0, block * bytes / SECTOR };
			requests[i].status = 0xff;
			avail->ring[added++ % QUEUE] = 3 * i;
			submitted++;
		}
		__atomic_store_n(&avail->idx, added, __ATOMIC_RELEASE);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (added != kicked && vring_need_event(*avail_event, added, kicked) && write(4, &one, 8) != 8)
			fail("kick");
		kicked = added;
		while (__atomic_load_n(&used->idx, __ATOMIC_ACQUIRE) == seen) {
			*used_event = seen;
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
			if (__atomic_load_n(&used->idx, __ATOMIC_ACQUIRE) != seen)
				break;
			uint64_t events;
			struct pollfd interrupt = { .fd = 5, .events = POLLIN };
			if (poll(&interrupt, 1, -1) < 0 || read(5, &events, 8) != 8)
				fail("interrupt");
		}
		for (uint16_t end = __atomic_load_n(&used->idx, __ATOMIC_ACQUIRE); seen != end; seen++, done++) {
			unsigned i = used->ring[seen % QUEUE].id / 3;
			if (requests[i].status != VIRTIO_BLK_S_OK) {
				fprintf(stderr, "a read failed: status %u\n", requests[i].status);
				return 1;
			}
			free[free_count++] = i;
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%ld\n", (to.tv_sec - from.tv_sec) * 1000000000L + to.tv_nsec - from.tv_nsec);
	return 0;
}
