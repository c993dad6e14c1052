#define _GNU_SOURCE
#include "base/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/free_memory.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

static const size_t PIECE = (size_t)16 << 20, SMALL_PIECE = (size_t)64 << 10;
static const size_t HUGE_PAGE = (size_t)2 << 20;

static size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/* ---- the file ---------------------------------------------------------------------- */

/* Kernels from 6.3 on may be set to refuse files that could be executed (vm.memfd_noexec = 2);
 * older ones do not know the flag. */
static int make_file(const char *name) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  int fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) fd = memfd_create(name, flags);
  if (fd >= 0 && !fchmod(fd, 0600)) return fd;
  int failed = errno;
  if (fd >= 0) close(fd);
  msi_error(MPISERVE_ENOMEM, "memfd_create: %s", strerror(failed));
  return -1;
}

static int refuse(size_t bytes, uint64_t free_bytes, const char *why) {
  return msi_error(MPISERVE_ENOMEM,
                   "%zu bytes of memory are needed and %" PRIu64 " bytes are free (%s)", bytes,
                   free_bytes, why);
}

/* The kernel would send SIGXFSZ. */
static int check_file_size(size_t bytes) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit) || limit.rlim_cur == RLIM_INFINITY || bytes <= limit.rlim_cur)
    return MPISERVE_OK;
  return refuse(bytes, limit.rlim_cur, "ulimit -f");
}

/* Beyond what is free the kernel does not refuse: it kills a process of the group. */
static int check_free(size_t bytes, size_t reserved) {
  msi_free_memory found = msi_free_memory_find("");
  if (found.bytes >= bytes - reserved) return MPISERVE_OK;
  return refuse(bytes, found.bytes + reserved, found.limit);
}

/* Piece by piece, with a look before each, because other ranks reserve memory at the same time. A
 * signal interrupts a piece and undoes it: the next one is smaller, or it would never end in a
 * program with a fast timer. */
static int reserve(int fd, size_t bytes) {
  size_t piece = PIECE, at = 0;
  int code = check_file_size(bytes);
  while (!code && at < bytes) {
    code = check_free(bytes, at);
    if (code) break;
    size_t next = bytes - at < piece ? bytes - at : piece;
    if (!fallocate(fd, 0, (off_t)at, (off_t)next))
      at += next;
    else if (errno != EINTR)
      return refuse(bytes, at, strerror(errno));
    else if (piece > SMALL_PIECE)
      piece /= 2;
  }
  return code;
}

/* A page for which there is no room in the file system of its file, mostly /dev/shm, would be a
 * SIGBUS at its first use; here it is EFAULT. EINVAL: the kernel cannot, or the pages are no usual
 * memory. */
int msi_segment_fill(void *memory, size_t bytes) {
  size_t before = (uintptr_t)memory % (size_t)sysconf(_SC_PAGESIZE), next;
  uint8_t *begin = (uint8_t *)memory - before;
  int code = MPISERVE_OK;
  for (size_t at = 0, end = before + bytes; !code && at < end; at += next) {
    next = end - at < PIECE ? end - at : PIECE;
    code = check_free(bytes, at < bytes ? at : bytes);
    if (code || !madvise(begin + at, next, MADV_POPULATE_WRITE) || errno == EINVAL) continue;
    return refuse(bytes, at, errno == EFAULT ? "in /dev/shm" : strerror(errno));
  }
  return code;
}

/* ---- the mapping ------------------------------------------------------------------- */

static void *map(void *where, size_t bytes, int fd) {
  int flags = MAP_SHARED | (where ? MAP_FIXED : 0);
  return mmap(where, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
}

/* Huge pages are there where the system is set so: shmem_enabled in
 * /sys/kernel/mm/transparent_hugepage. */
static void *map_aligned(size_t bytes, int fd) {
  size_t space = bytes + HUGE_PAGE;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  uint8_t *begin = mmap(NULL, space, PROT_NONE, flags, -1, 0);
  if (begin == MAP_FAILED) return MAP_FAILED;
  size_t before = -(uintptr_t)begin % HUGE_PAGE, behind = space - before - bytes;
  uint8_t *memory = map(begin + before, bytes, fd);
  if (memory == MAP_FAILED) {
    munmap(begin, space);
    return MAP_FAILED;
  }
  if (before) munmap(begin, before);
  if (behind) munmap(memory + bytes, behind);
  madvise(memory, bytes, MADV_HUGEPAGE); /* refused where the kernel has none */
  return memory;
}

static int map_file(msi_segment *segment, int fd, size_t bytes) {
  void *memory = bytes >= HUGE_PAGE ? map_aligned(bytes, fd) : map(NULL, bytes, fd);
  if (memory == MAP_FAILED)
    return msi_error(MPISERVE_ENOMEM, "%zu bytes of memory cannot be mapped: %s", bytes,
                     strerror(errno));
  segment->memory = memory;
  segment->bytes = bytes;
  return MPISERVE_OK;
}

/* ---- segments ---------------------------------------------------------------------- */

static int open_segment(msi_segment *segment, const char *name, size_t bytes) {
  *segment = (msi_segment){.fd = -1};
  if (!bytes) return MPISERVE_OK;
  bytes = round_up(bytes, (size_t)sysconf(_SC_PAGESIZE));
  int fd = make_file(name);
  if (fd < 0) return MPISERVE_ENOMEM;
  int code = reserve(fd, bytes);
  if (!code) code = map_file(segment, fd, bytes);
  if (code)
    close(fd);
  else
    segment->fd = fd;
  return code;
}

/* Nobody can take the reserved pages away by making the file shorter. */
int msi_segment_open(msi_segment *segment, size_t bytes) {
  int code = open_segment(segment, "mpiserve", bytes);
  if (!code && bytes) fcntl(segment->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  return code;
}

/* The mapping of this process is there before the seal, and stays writable. */
int msi_segment_open_shown(msi_segment *segment, size_t bytes) {
  int code = open_segment(segment, "mpiserve-rank", bytes);
  if (code || !bytes) return code;
  fcntl(segment->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE); /* a kernel may not know it */
  fcntl(segment->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  return code;
}

static int refuse_attach(const msi_segment_id *id, const char *why) {
  return msi_error(MPISERVE_ECONFIG,
                   "the memory of process %d cannot be mapped (/proc/%d/fd/%d: %s): the ranks of a "
                   "node must be of one user and see each other in /proc, not in PID namespaces "
                   "(containers) of their own",
                   id->pid, id->pid, id->fd, why);
}

/* In another PID namespace the number is that of another process, or of none. */
static int check_file(const msi_segment_id *id, int fd) {
  struct stat found;
  if (fstat(fd, &found)) return refuse_attach(id, strerror(errno));
  if (found.st_dev == id->device && found.st_ino == id->inode &&
      (uint64_t)found.st_size == id->bytes)
    return MPISERVE_OK;
  return refuse_attach(id, "a file of another process");
}

int msi_segment_attach(msi_segment *segment, const msi_segment_id *id, size_t bytes) {
  char path[64];
  *segment = (msi_segment){.fd = -1};
  snprintf(path, sizeof path, "/proc/%d/fd/%d", id->pid, id->fd);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return refuse_attach(id, strerror(errno));
  int code = check_file(id, fd);
  if (!code && bytes > id->bytes)
    code = msi_error(MPISERVE_ESTATE, "process %d has %" PRIu64 " bytes of memory, and not %zu",
                     id->pid, id->bytes, bytes);
  if (!code) code = map_file(segment, fd, round_up(bytes, (size_t)sysconf(_SC_PAGESIZE)));
  close(fd); /* the mapping stays */
  return code;
}

msi_segment_id msi_segment_identify(const msi_segment *segment) {
  struct stat file;
  if (!segment->memory || segment->fd < 0 || fstat(segment->fd, &file)) return (msi_segment_id){0};
  return (msi_segment_id){.device = file.st_dev,
                          .inode = file.st_ino,
                          .bytes = segment->bytes,
                          .pid = getpid(),
                          .fd = segment->fd};
}

void msi_segment_close(msi_segment *segment) {
  if (!segment->memory) return;
  munmap(segment->memory, segment->bytes);
  if (segment->fd >= 0) close(segment->fd);
  *segment = (msi_segment){.fd = -1};
}
