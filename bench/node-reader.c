/*
 * The limit for reading metadata: the nodes that a walk has read, in its order, read again by a program that does
 * nothing but check each: checksum (CRC-32C), own block number, keys in ascending order. bench/device.ts compiles it.
 *
 *   node-reader pread|mmap|libaio|io_uring DEPTH FILE REQUESTS
 *
 * DEPTH: the most requests under way at once. REQUESTS: pairs of 32 bits, first block and number of blocks of a request.
 * Prints microseconds of wall time, microseconds of its own processor time, and the number of nodes that were intact.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define MOST_BLOCKS 256
#define NODE_SALT 121107

struct request { uint32_t first, count; };

static struct request *requests;
static size_t total, intact;

static void fail(const char *what) { fprintf(stderr, "node-reader: %s: %s\n", what, strerror(errno)); exit(errno == EPERM || errno == ENOSYS ? 77 : 1); }

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c(const uint8_t *bytes) {
  /* Three parts side by side would be twice as fast; this is what fits on a page. */
  uint64_t crc = 0xffffffff;
  uint32_t first;
  memcpy(&first, bytes, 4);
  crc = __builtin_ia32_crc32si(crc, first);
  for (const uint64_t *word = (const void *)(bytes + 4), *end = word + (BLOCK - 8) / 8; word < end; word++)
    crc = __builtin_ia32_crc32di(crc, *word);
  return crc;
}
#else
static uint32_t crc32c(const uint8_t *bytes) {
  static uint32_t table[256];
  if (!table[1])
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0x82f63b78 : 0);
      table[i] = value;
    }
  uint32_t crc = 0xffffffff;
  for (int i = 0; i < BLOCK - 4; i++) crc = crc >> 8 ^ table[(crc ^ bytes[i]) & 0xff];
  return crc;
}
#endif

static void check(const uint8_t *bytes, uint64_t block) {
  const uint32_t *words = (const void *)bytes;
  const uint64_t *keys = (const void *)(bytes + 32);
  uint64_t own;
  memcpy(&own, bytes + 8, 8);
  if ((crc32c(bytes + 4) ^ NODE_SALT) != words[0] || own != block) return;
  for (uint32_t i = 1; i < words[4] && i < 252; i++)
    if (keys[i] <= keys[i - 1]) return;
  intact++;
}

static void done(const struct request *request, const uint8_t *bytes, int64_t read) {
  if (read != (int64_t)request->count * BLOCK) { errno = read < 0 ? -read : EIO; fail("read"); }
  for (uint32_t i = 0; i < request->count; i++) check(bytes + i * BLOCK, request->first + i);
}

static void with_pread(int file, uint8_t *memory) {
  for (size_t i = 0; i < total; i++)
    done(&requests[i], memory, pread(file, memory, requests[i].count * BLOCK, (off_t)requests[i].first * BLOCK));
}

static void with_mmap(int file, off_t size) {
  const uint8_t *all = mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0);
  if (all == MAP_FAILED) fail("mmap");
  for (size_t i = 0; i < total; i++)
    done(&requests[i], all + (size_t)requests[i].first * BLOCK, (int64_t)requests[i].count * BLOCK);
}

static void with_libaio(int file, uint8_t *memory, unsigned depth) {
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, depth, &context)) fail("io_setup");
  struct iocb *blocks = calloc(depth, sizeof *blocks), **sent = calloc(depth, sizeof *sent);
  struct io_event *events = calloc(depth, sizeof *events);
  unsigned *free_slots = calloc(depth, sizeof *free_slots), free_count = 0;
  for (unsigned i = 0; i < depth; i++) free_slots[free_count++] = i;
  for (size_t next = 0, finished = 0; finished < total;) {
    unsigned count = 0;
    for (; free_count > 0 && next < total; next++) {
      unsigned slot = free_slots[--free_count];
      blocks[slot] = (struct iocb){ .aio_data = next << 16 | slot, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = file,
        .aio_buf = (uintptr_t)(memory + (size_t)slot * MOST_BLOCKS * BLOCK), .aio_nbytes = requests[next].count * BLOCK,
        .aio_offset = (int64_t)requests[next].first * BLOCK };
      sent[count++] = &blocks[slot];
    }
    for (unsigned begun = 0; begun < count;) {
      long submitted = syscall(SYS_io_submit, context, count - begun, sent + begun);
      if (submitted <= 0) fail("io_submit");
      begun += submitted;
    }
    long least = next < total ? depth / 4 : 1;
    long back = syscall(SYS_io_getevents, context, least ? least : 1, depth, events, NULL);
    if (back <= 0) fail("io_getevents");
    for (long i = 0; i < back; i++) {
      unsigned slot = events[i].data & 0xffff;
      done(&requests[events[i].data >> 16], memory + (size_t)slot * MOST_BLOCKS * BLOCK, events[i].res);
      free_slots[free_count++] = slot;
    }
    finished += back;
  }
}

static void with_io_uring(int file, uint8_t *memory, unsigned depth) {
  struct io_uring_params params = { 0 };
  int ring = syscall(SYS_io_uring_setup, depth, &params);
  if (ring < 0) fail("io_uring_setup");
  uint8_t *sq = mmap(NULL, params.sq_off.array + params.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
  uint8_t *cq = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
  struct io_uring_sqe *entries = mmap(NULL, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
  if (sq == MAP_FAILED || cq == MAP_FAILED || entries == MAP_FAILED) fail("mmap of the ring");
  uint32_t *sq_tail = (void *)(sq + params.sq_off.tail), sq_mask = *(uint32_t *)(sq + params.sq_off.ring_mask), *array = (void *)(sq + params.sq_off.array);
  uint32_t *cq_head = (void *)(cq + params.cq_off.head), *cq_tail = (void *)(cq + params.cq_off.tail), cq_mask = *(uint32_t *)(cq + params.cq_off.ring_mask);
  struct io_uring_cqe *completions = (void *)(cq + params.cq_off.cqes);
  unsigned *free_slots = calloc(depth, sizeof *free_slots), free_count = 0;
  for (unsigned i = 0; i < depth; i++) free_slots[free_count++] = i;
  for (size_t next = 0, finished = 0; finished < total;) {
    unsigned count = 0;
    uint32_t tail = *sq_tail;
    for (; free_count > 0 && next < total; next++, count++, tail++) {
      unsigned slot = free_slots[--free_count];
      uint32_t at = tail & sq_mask;
      entries[at] = (struct io_uring_sqe){ .opcode = IORING_OP_READ, .fd = file, .user_data = (uint64_t)next << 16 | slot,
        .addr = (uintptr_t)(memory + (size_t)slot * MOST_BLOCKS * BLOCK), .len = requests[next].count * BLOCK, .off = (uint64_t)requests[next].first * BLOCK };
      array[at] = at;
    }
    __atomic_store_n(sq_tail, tail, __ATOMIC_RELEASE);
    unsigned least = next < total ? depth / 4 : 1;
    if (syscall(SYS_io_uring_enter, ring, count, least ? least : 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0) fail("io_uring_enter");
    uint32_t head = *cq_head;
    for (; head != __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE); head++, finished++) {
      struct io_uring_cqe *completion = &completions[head & cq_mask];
      unsigned slot = completion->user_data & 0xffff;
      done(&requests[completion->user_data >> 16], memory + (size_t)slot * MOST_BLOCKS * BLOCK, completion->res);
      free_slots[free_count++] = slot;
    }
    __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
  }
}

static double microseconds(struct timeval time) { return time.tv_sec * 1e6 + time.tv_usec; }

int main(int argc, char **argv) {
  if (argc != 5) { fprintf(stderr, "usage: node-reader pread|mmap|libaio|io_uring DEPTH FILE REQUESTS\n"); return 2; }
  const char *mode = argv[1];
  unsigned depth = strtoul(argv[2], NULL, 10);
  int list = open(argv[4], O_RDONLY);
  struct stat status;
  if (list < 0 || fstat(list, &status)) fail(argv[4]);
  total = status.st_size / sizeof *requests;
  requests = malloc(status.st_size + 1);
  if (read(list, requests, status.st_size) != status.st_size) fail(argv[4]);
  struct stat file_status;
  if (stat(argv[3], &file_status)) fail(argv[3]);
  /* A device is read around the page cache, always; a file where its mode says so. */
  int around = S_ISBLK(file_status.st_mode) || !strcmp(mode, "libaio") || !strcmp(mode, "io_uring");
  int file = open(argv[3], O_RDONLY | (around ? O_DIRECT : 0));
  if (file < 0) fail(argv[3]);
  uint8_t *memory = mmap(NULL, (size_t)depth * MOST_BLOCKS * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct rusage before, after;
  struct timespec began, ended;
  getrusage(RUSAGE_SELF, &before);
  clock_gettime(CLOCK_MONOTONIC, &began);
  if (!strcmp(mode, "pread")) with_pread(file, memory);
  else if (!strcmp(mode, "mmap")) with_mmap(file, file_status.st_size);
  else if (!strcmp(mode, "libaio")) with_libaio(file, memory, depth);
  else with_io_uring(file, memory, depth);
  clock_gettime(CLOCK_MONOTONIC, &ended);
  getrusage(RUSAGE_SELF, &after);
  printf("%.0f %.0f %zu\n", (ended.tv_sec - began.tv_sec) * 1e6 + (ended.tv_nsec - began.tv_nsec) / 1e3,
    microseconds(after.ru_utime) + microseconds(after.ru_stime) - microseconds(before.ru_utime) - microseconds(before.ru_stime), intact);
  return 0;
}
