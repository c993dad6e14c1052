#define _GNU_SOURCE
#include "base/free_memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

enum { PATH_BYTES = 512 };

static char root[] = "/tmp/test_free_memory.XXXXXX";

/* Puts a file below root, and the folders that it needs. */
__attribute__((format(printf, 2, 3))) static void put(const char *name, const char *format, ...) {
  char path[PATH_BYTES];
  va_list args;
  snprintf(path, sizeof path, "%s%s", root, name);
  for (char *at = path + sizeof root; (at = strchr(at, '/')); *at++ = '/') {
    *at = 0;
    mkdir(path, 0700);
  }
  FILE *file = fopen(path, "w");
  CHECK(file);
  va_start(args, format);
  if (file) vfprintf(file, format, args);
  va_end(args);
  if (file) fclose(file);
}

static void remove_all(void) {
  char command[PATH_BYTES];
  snprintf(command, sizeof command, "rm -rf %s", root);
  CHECK(!system(command));
}

static void start_anew(const char *groups) {
  remove_all();
  mkdir(root, 0700);
  put("/proc/meminfo", "MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable:      800 kB\n");
  put("/proc/self/cgroup", "%s", groups);
}

/* A group of version 2, with 3 and 4 bytes of cached files. */
static void put_group(const char *path, const char *most, int used) {
  char name[PATH_BYTES];
  snprintf(name, sizeof name, "/sys/fs/cgroup%s/memory.max", path);
  put(name, "%s\n", most);
  snprintf(name, sizeof name, "/sys/fs/cgroup%s/memory.current", path);
  put(name, "%d\n", used);
  snprintf(name, sizeof name, "/sys/fs/cgroup%s/memory.stat", path);
  put(name, "anon 1\nfile 7\ninactive_file 3\nactive_file 4\n");
}

static void check_found(uint64_t bytes, const char *limit) {
  msi_free_memory found = msi_free_memory_find(root);
  CHECK(found.bytes == bytes);
  CHECK_TEXT(found.limit, limit);
}

static void test_the_machine_sets_the_limit(void) {
  start_anew("0::/\n");
  check_found(800 << 10, "MemAvailable");
  start_anew("");
  check_found(800 << 10, "MemAvailable");
}

static void test_nothing_is_known(void) {
  start_anew("0::/\n");
  put("/proc/meminfo", "MemTotal: 900 kB\n");
  check_found(UINT64_MAX, "");
}

static void test_a_group_sets_the_limit_and_its_cached_files_are_free(void) {
  start_anew("0::/job/step\n");
  put_group("/job/step", "1000", 107);
  check_found(900, "memory.max of the control group /job/step");
  put_group("/job/step", "1000", 5); /* less than its caches, for once */
  check_found(1000, "/job/step");
  put_group("/job/step", "1000", 2000);
  check_found(0, "/job/step");
}

static void test_a_group_around_it_sets_the_limit(void) {
  start_anew("0::/job/step\n");
  put_group("/job/step", "max", 107);
  put_group("/job", "500", 107);
  check_found(400, "control group /job");
  put_group("", "300", 107); /* the mount itself, in a container */
  check_found(200, "control group /");
}

static void test_a_group_that_is_not_there_is_that_of_the_host(void) {
  start_anew("0::/docker/0123\n");
  put_group("", "300", 107);
  check_found(200, "control group /");
}

static void test_version_1(void) {
  start_anew("9:name=systemd:/\n4:cpu,memory:/job\n0::/\n");
  put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1000\n");
  put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "300\n");
  put("/sys/fs/cgroup/memory/job/memory.stat",
      "inactive_file 90\ntotal_inactive_file 1\ntotal_active_file 1\n");
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "300\n");
  check_found(702, "memory.limit_in_bytes of the control group /job");
}

static void test_this_machine(void) {
  msi_free_memory found = msi_free_memory_find("");
  CHECK(found.bytes > 0 && found.bytes < UINT64_MAX && found.limit[0]);
}

int main(void) {
  CHECK(mkdtemp(root));
  test_the_machine_sets_the_limit();
  test_nothing_is_known();
  test_a_group_sets_the_limit_and_its_cached_files_are_free();
  test_a_group_around_it_sets_the_limit();
  test_a_group_that_is_not_there_is_that_of_the_host();
  test_version_1();
  test_this_machine();
  remove_all();
  return check_result();
}
