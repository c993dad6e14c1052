#define _GNU_SOURCE
#include "base/free_memory.h"

#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { FILE_BYTES = 16384 };

/* The files of a control group in which memory is counted; version 1 and 2 name them differently.
 */
typedef struct group_files {
  const char *mount, *limit, *used, *caches[2];
} group_files;

static const group_files VERSION_1 = {"/sys/fs/cgroup/memory",
                                      "memory.limit_in_bytes",
                                      "memory.usage_in_bytes",
                                      {"total_inactive_file ", "total_active_file "}};
static const group_files VERSION_2 = {
    "/sys/fs/cgroup", "memory.max", "memory.current", {"inactive_file ", "active_file "}};

/* Reads a whole file of the kernel; 0 if there is none. */
__attribute__((format(printf, 2, 3))) static int read_file(char text[FILE_BYTES],
                                                           const char *format, ...) {
  char path[PATH_MAX];
  va_list args;
  va_start(args, format);
  int length = vsnprintf(path, sizeof path, format, args);
  va_end(args);
  text[0] = 0;
  int fd = length < PATH_MAX ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return 0;
  ssize_t n, bytes = 0;
  while (bytes < FILE_BYTES - 1 && (n = read(fd, text + bytes, FILE_BYTES - 1 - bytes)) > 0)
    bytes += n;
  close(fd);
  text[bytes] = 0;
  return bytes > 0;
}

/* The number behind a key at the begin of a line; 0: there is none. */
static int number_after(const char *text, const char *key, uint64_t *number) {
  for (const char *line = text; line; line = strchr(line, '\n')) {
    line += *line == '\n';
    if (strncmp(line, key, strlen(key))) continue;
    char *end;
    *number = strtoull(line + strlen(key), &end, 10);
    return end > line + strlen(key);
  }
  return 0;
}

__attribute__((format(printf, 3, 4))) static void take_less(msi_free_memory *least, uint64_t bytes,
                                                            const char *format, ...) {
  if (bytes >= least->bytes) return;
  va_list args;
  least->bytes = bytes;
  va_start(args, format);
  vsnprintf(least->limit, sizeof least->limit, format, args);
  va_end(args);
}

static void look_at_machine(msi_free_memory *least, const char *root) {
  char text[FILE_BYTES];
  uint64_t kilobytes;
  if (read_file(text, "%s/proc/meminfo", root) && number_after(text, "MemAvailable:", &kilobytes))
    take_less(least, kilobytes << 10, "MemAvailable of /proc/meminfo");
}

/* ---- control groups -------------------------------------------------------------- */

/* Cached files count as used, but the kernel drops them when somebody wants the memory. */
static uint64_t caches_of(const char *root, const group_files *files, const char *group) {
  char text[FILE_BYTES];
  uint64_t sum = 0, bytes;
  read_file(text, "%s%s%s/memory.stat", root, files->mount, group);
  for (int i = 0; i < 2; i++)
    if (number_after(text, files->caches[i], &bytes)) sum += bytes;
  return sum;
}

static void look_at_group(msi_free_memory *least, const char *root, const group_files *files,
                          const char *group) {
  char text[FILE_BYTES];
  uint64_t limit, used;
  if (!read_file(text, "%s%s%s/%s", root, files->mount, group, files->limit) ||
      !number_after(text, "", &limit) || /* "max" */
      !read_file(text, "%s%s%s/%s", root, files->mount, group, files->used) ||
      !number_after(text, "", &used))
    return;
  uint64_t caches = caches_of(root, files, group), held = used > caches ? used - caches : 0;
  take_less(least, limit > held ? limit - held : 0, "%s of the control group %.100s", files->limit,
            *group ? group : "/");
}

/* The limits of all groups around a group hold too. In a container the path may be the host's:
 * then only the last one, the mount itself, is there, and is the container's group. */
static void look_at_groups(msi_free_memory *least, const char *root, const group_files *files,
                           char *group) {
  group[strcspn(group, "\n")] = 0;
  for (char *end; (end = strrchr(group, '/')); *end = 0)
    if (end[1]) look_at_group(least, root, files, group);
  look_at_group(least, root, files, "");
}

/* A line is NUMBER:CONTROLLERS:PATH; version 2 has the number 0 and no controllers. */
static void look_at_all_groups(msi_free_memory *least, const char *root) {
  char text[FILE_BYTES], *rest = text;
  read_file(text, "%s/proc/self/cgroup", root);
  for (char *line; (line = strsep(&rest, "\n"));) {
    strsep(&line, ":");
    char *controllers = strsep(&line, ":");
    if (!line) continue;
    if (!*controllers) look_at_groups(least, root, &VERSION_2, line);
    if (strstr(controllers, "memory")) look_at_groups(least, root, &VERSION_1, line);
  }
}

/* ---- all limits ------------------------------------------------------------------- */

static void look_at_process(msi_free_memory *least, const char *root) {
  char text[FILE_BYTES];
  struct rlimit limit;
  uint64_t pages = 0;
  if (!getrlimit(RLIMIT_AS, &limit) && limit.rlim_cur != RLIM_INFINITY &&
      read_file(text, "%s/proc/self/statm", root) && number_after(text, "", &pages)) {
    uint64_t used = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    take_less(least, limit.rlim_cur > used ? limit.rlim_cur - used : 0, "ulimit -v");
  }
}

msi_free_memory msi_free_memory_find(const char *root) {
  msi_free_memory least = {.bytes = UINT64_MAX};
  look_at_machine(&least, root);
  look_at_all_groups(&least, root);
  look_at_process(&least, root);
  return least;
}
