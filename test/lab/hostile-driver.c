/*
 * A malicious driver for the virtio devices of a guest, as root of it writes one: the kernel's driver is unbound, and
 * the device's registers, rings and configuration space are written by hand, through sysfs (Linux,
 * Documentation/ABI/testing/sysfs-bus-pci).
 *
 *   hostile-driver quiet SEED ROUNDS   what the guest itself should live through: no interrupt that it does not
 *                                      expect, no write of a device's into memory of somebody else's. Each device is
 *                                      given back to the kernel's driver then.
 *   hostile-driver loud SEED ROUNDS    anything at all, to each device, the one that the agent speaks by too
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096
#define BAR_SIZE (8 * PAGE)
#define PAGES 16
#define MAX_DEVICES 32
#define SIZE 8 /* of every queue */
#define SYSFS "/tmp/hostile-sysfs"
#define DEVICES SYSFS "/bus/pci/devices"
#define PATH_SIZE 160
#define DRIVER SYSFS "/bus/pci/drivers/virtio-pci"

/* Pages of the BAR, and registers of the common configuration (virtio 1.2 4.1.4.3). */
enum { COMMON, CONFIG, TABLE, PENDING, ISR, NOTIFY };
enum { FEATURE_SELECT = 8, FEATURE = 12, STATUS = 20, QUEUE_SELECT = 22, QUEUE_SIZE = 24, QUEUE_ENABLE = 28 };
enum { QUEUE_DESC = 32, QUEUE_DRIVER = 40, QUEUE_DEVICE = 48 };
enum { VIRTIO_BLOCK = 2, VIRTIO_BALLOON = 5, VIRTIO_VSOCK = 19, VIRTIO_PMEM = 27 };

static uint64_t state;
static uint8_t *memory;         /* PAGES pages that stay where they are */
static uint64_t place[PAGES];   /* where the machine has them */
static bool loud;

static uint64_t any(void) { /* xorshift64 */
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

static uint64_t below(uint64_t n) { return any() % n; }

static _Noreturn void die(const char *what) {
  printf("hostile-driver: %s: %s\n", what, strerror(errno));
  exit(1);
}

/* In memory alone, since the disks are about to go. */
static void move_to_memory(char **argv) {
  if (getenv("IN_MEMORY") != NULL) return;
  int from = open("/proc/self/exe", O_RDONLY), to = memfd_create("hostile", 0);
  char block[65536];
  for (ssize_t n; (n = read(from, block, sizeof block)) > 0;)
    if (write(to, block, (size_t)n) != n) die("copy");
  setenv("IN_MEMORY", "1", 1);
  fexecve(to, argv, environ);
  die("fexecve");
}

static void get_memory(void) {
  memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED || mlockall(MCL_CURRENT | MCL_FUTURE) != 0) die("memory");
  int fd = open("/proc/self/pagemap", O_RDONLY);
  for (int i = 0; i < PAGES; i++) {
    uint64_t entry = 0;
    off_t at = (off_t)(((uintptr_t)memory / PAGE + (unsigned)i) * 8);
    if (pread(fd, &entry, 8, at) != 8 || (entry & ((1ull << 55) - 1)) == 0) die("pagemap");
    place[i] = (entry & ((1ull << 55) - 1)) * PAGE;
  }
  close(fd);
}

static bool put(const char *path, const char *text) {
  int fd = open(path, O_WRONLY);
  bool good = fd >= 0 && write(fd, text, strlen(text)) >= 0;
  if (fd >= 0) close(fd);
  return good;
}

struct device {
  char name[16]; /* 0000:00:01.0 */
  unsigned type;
  int config;
  volatile uint8_t *bar;
};

static bool take(struct device *d) {
  char path[PATH_SIZE];
  uint16_t ids[2];
  snprintf(path, sizeof path, DEVICES "/%.15s/config", d->name);
  d->config = open(path, O_RDWR);
  if (d->config < 0 || pread(d->config, ids, 4, 0) != 4 || ids[0] != 0x1af4) return false;
  d->type = ids[1] - 0x1040u;
  return true;
}

static bool map(struct device *d) {
  char path[PATH_SIZE];
  put(DRIVER "/unbind", d->name);
  uint16_t command = 6; /* memory, bus master */
  pwrite(d->config, &command, 2, 4);
  snprintf(path, sizeof path, DEVICES "/%.15s/resource0", d->name);
  int fd = open(path, O_RDWR);
  d->bar = fd < 0 ? MAP_FAILED : mmap(NULL, BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (fd >= 0) close(fd);
  return d->bar != MAP_FAILED;
}

static void write8(struct device *d, unsigned at, uint8_t v) { d->bar[at] = v; }
static void write16(struct device *d, unsigned at, uint16_t v) { *(volatile uint16_t *)(d->bar + at) = v; }
static void write32(struct device *d, unsigned at, uint32_t v) { *(volatile uint32_t *)(d->bar + at) = v; }

static void write_any(struct device *d, unsigned at) {
  uint32_t value = (uint32_t)(below(2) ? any() : below(20));
  switch (below(3)) {
    case 0: write8(d, at, (uint8_t)value); break;
    case 1: write16(d, at & ~1u, (uint16_t)value); break;
    default: write32(d, at & ~3u, value);
  }
}

/* Where a descriptor or a ring may be. */
static uint64_t address(void) {
  switch (below(8)) {
    case 0: return (1ull << 40) + any() / 2; /* nobody's */
    case 1: return loud ? below(1ull << 33) : UINT64_MAX - below(64);
    case 2: return loud ? below(1 << 20) : 0xfffffffffull << 12;
    default: return place[below(PAGES)] + below(PAGE);
  }
}

/* As it should be done, but for where the rings are now and then and what they hold. */
static void start(struct device *d, unsigned queue) {
  for (unsigned i = 0; i < 3; i++) write8(d, STATUS, (uint8_t[]){0, 1, 3}[i]);
  write32(d, FEATURE_SELECT, 0), write32(d, FEATURE, below(4) ? 0 : (uint32_t)any());
  write32(d, FEATURE_SELECT, 1), write32(d, FEATURE, below(8) ? 1 : (uint32_t)any());
  write8(d, STATUS, 11);
  write16(d, QUEUE_SELECT, (uint16_t)queue);
  write16(d, QUEUE_SIZE, below(8) ? SIZE : (uint16_t)any());
  for (unsigned i = 0; i < 3; i++) {
    uint64_t at = below(12) ? place[i] : address();
    write32(d, QUEUE_DESC + 8 * i, (uint32_t)at), write32(d, QUEUE_DESC + 8 * i + 4, (uint32_t)(at >> 32));
  }
  write16(d, QUEUE_ENABLE, 1);
  write8(d, STATUS, 15);
}

static void fill_rings(void) {
  uint16_t *available = (uint16_t *)(memory + PAGE);
  for (unsigned i = 0; i < SIZE; i++) {
    uint64_t at = address();
    uint32_t length = (uint32_t)(below(6) ? below(PAGE) : any());
    /* Of a device that writes: within the page, as long as the guest is to live. */
    if (!loud && at < (1ull << 40)) length = (uint32_t)below(PAGE - at % PAGE + 1);
    uint16_t flags = (uint16_t)below(below(8) ? 4 : 65536), next = (uint16_t)below(below(6) ? SIZE : 65536);
    if (!loud) flags &= 0xfffb; /* an indirect table holds addresses that nobody looked at */
    memcpy(memory + 16 * i, &at, 8), memcpy(memory + 16 * i + 8, &length, 4);
    memcpy(memory + 16 * i + 12, &flags, 2), memcpy(memory + 16 * i + 14, &next, 2);
    available[2 + i] = (uint16_t)below(below(6) ? SIZE : 65536);
  }
  available[0] = (uint16_t)(loud ? below(2) : 1); /* no interrupt */
  available[1] = (uint16_t)below(below(4) ? SIZE + 1 : 65536);
  for (unsigned i = 4 * PAGE; i < PAGES * PAGE; i += 4) *(uint32_t *)(memory + i) = (uint32_t)(below(3) ? below(30) : any());
}

static void round_of(struct device *d) {
  unsigned queue = (unsigned)below(3);
  switch (below(loud ? 7 : 4)) {
    case 0:
      for (int i = 0; i < 40; i++) write_any(d, (unsigned)below(64));
      break;
    case 1: /* not the vectors: nobody is to be interrupted */
      for (int i = 0; i < 40; i++) write_any(d, (unsigned[]){CONFIG, PENDING, ISR, NOTIFY}[below(4)] * PAGE + (unsigned)below(PAGE));
      break;
    case 2:
    case 3:
      fill_rings();
      start(d, queue);
      for (int i = 0; i < 20; i++) write16(d, NOTIFY * PAGE + 4 * queue, (uint16_t)queue);
      for (int i = 0; i < 10; i++) {
        fill_rings();
        write16(d, NOTIFY * PAGE + 4 * (unsigned)below(3), (uint16_t)any());
      }
      break;
    case 4: /* vectors */
      for (int i = 0; i < 40; i++) write_any(d, TABLE * PAGE + (unsigned)below(64));
      break;
    case 5: /* MSI-X on and off, BARs that move, and the rest */
      for (int i = 0; i < 20; i++) {
        uint32_t value = (uint32_t)any();
        pwrite(d->config, &value, 1u << below(3), (off_t)below(256));
      }
      break;
    default: { /* back again, so that there is something to abuse */
      uint16_t on = 0xc000, command = 6;
      pwrite(d->config, &command, 2, 4);
      for (off_t at = 0x40; at < 0x100; at += 4) pwrite(d->config, &on, 2, at + 2);
    }
  }
}

/* Without it the container's own words, or its files, are gone. What the balloon is told to take goes for good. */
static bool is_needed(const struct device *d) {
  return d->type == VIRTIO_VSOCK || d->type == VIRTIO_PMEM || d->type == VIRTIO_BLOCK || (!loud && d->type == VIRTIO_BALLOON);
}

static void quiet_rounds(struct device *d, int rounds) {
  for (int r = 0; r < rounds; r++) round_of(d);
  write8(d, STATUS, 0);
  munmap((void *)d->bar, BAR_SIZE);
  printf("%s %s\n", put(DRIVER "/bind", d->name) ? "bound" : "not bound", d->name);
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc != 4) return 2;
  move_to_memory(argv);
  loud = strcmp(argv[1], "loud") == 0;
  state = strtoull(argv[2], NULL, 0) * 0x9e3779b97f4a7c15ull + 1;
  int rounds = atoi(argv[3]);
  get_memory();
  if (mkdir(SYSFS, 0700) != 0 || mount("sysfs", SYSFS, "sysfs", 0, NULL) != 0) die("sysfs");
  struct device devices[MAX_DEVICES];
  size_t count = 0;
  DIR *folder = opendir(DEVICES);
  for (struct dirent *each; folder != NULL && (each = readdir(folder)) != NULL && count < MAX_DEVICES;) {
    snprintf(devices[count].name, sizeof devices[count].name, "%.15s", each->d_name);
    if (each->d_name[0] != '.' && take(&devices[count])) count++;
  }
  /* Last what this program's own words go through, and its files. */
  for (int last = 0; last <= (loud ? 1 : 0); last++) {
    for (size_t i = 0; i < count; i++) {
      struct device *d = &devices[i];
      if (is_needed(d) != (last == 1)) continue;
      printf("device %s type %u\n", d->name, d->type);
      if (!map(d)) die(d->name);
      if (!loud) quiet_rounds(d, rounds);
    }
    for (int r = 0; loud && r < rounds; r++) {
      struct device *d = &devices[below(count)];
      if (last == 1 || !is_needed(d)) round_of(d);
    }
    printf("done\n");
  }
  return 0;
}
