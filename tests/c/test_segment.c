#define _GNU_SOURCE
#include "base/segment.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/free_memory.h"
#include "check.h"

enum { SMALL = 10000, LARGE = 5 << 20, HUGE_PAGE = 2 << 20, BLOCK = 512 };

/* Runs a function in a child: what it returns, or -1 if a signal ended it. */
static int in_child(int (*run)(const void *), const void *argument) {
  int status;
  fflush(stdout);
  pid_t child = fork();
  if (!child) {
    int result = run(argument);
    fflush(stdout);
    _exit(result || check_failures);
  }
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int is_zero(const uint8_t *memory, size_t bytes) {
  for (size_t i = 0; i < bytes; i++)
    if (memory[i]) return 0;
  return 1;
}

static void test_no_bytes_are_no_segment(void) {
  msi_segment segment;
  CHECK(!msi_segment_open(&segment, 0));
  CHECK(!segment.memory && !segment.bytes && segment.fd < 0);
  CHECK(!msi_segment_identify(&segment).pid);
  msi_segment_close(&segment);
  msi_segment_close(&(msi_segment){0});
}

static void test_a_segment_is_zero_aligned_and_reserved(void) {
  const size_t sizes[] = {1, SMALL, LARGE, HUGE_PAGE};
  for (int i = 0; i < 4; i++) {
    msi_segment segment;
    struct stat file;
    CHECK(!msi_segment_open(&segment, sizes[i]));
    size_t align = sizes[i] >= HUGE_PAGE ? HUGE_PAGE : (size_t)getpagesize();
    CHECK(segment.bytes >= sizes[i] && segment.bytes < sizes[i] + (size_t)getpagesize());
    CHECK((uintptr_t)segment.memory % align == 0);
    CHECK(!fstat(segment.fd, &file) && (size_t)file.st_size == segment.bytes);
    CHECK((size_t)file.st_blocks * BLOCK >= segment.bytes);
    CHECK(is_zero(segment.memory, segment.bytes));
    memset(segment.memory, 0xab, segment.bytes);
    msi_segment_close(&segment);
    CHECK(!segment.memory);
  }
}

static void test_the_file_is_private_and_keeps_its_size(void) {
  msi_segment segment;
  struct stat file;
  CHECK(!msi_segment_open(&segment, SMALL));
  CHECK(!fstat(segment.fd, &file) && (file.st_mode & 0777) == 0600);
  CHECK(fcntl(segment.fd, F_GETFD) & FD_CLOEXEC);
  CHECK(ftruncate(segment.fd, 0) == -1);
  CHECK(ftruncate(segment.fd, LARGE) == -1);
  msi_segment_close(&segment);
}

static int files_of_ours(const char *folder) {
  int n = 0;
  DIR *opened = opendir(folder);
  for (struct dirent *entry; opened && (entry = readdir(opened));)
    n += strstr(entry->d_name, "mpiserve") != NULL;
  if (opened) closedir(opened);
  return n;
}

static void test_it_has_no_name(void) {
  msi_segment segment;
  int before = files_of_ours("/dev/shm");
  CHECK(!msi_segment_open(&segment, SMALL));
  CHECK(files_of_ours("/dev/shm") == before);
  msi_segment_close(&segment);
}

/* ---- another process -------------------------------------------------------------- */

static int write_to(const void *id) {
  msi_segment segment;
  CHECK(!msi_segment_attach(&segment, id, SMALL));
  CHECK(segment.fd < 0 && segment.bytes >= SMALL);
  CHECK(segment.memory[0] == 1 && segment.memory[SMALL - 1] == 2);
  segment.memory[1] = 3;
  msi_segment_close(&segment);
  return 0;
}

static void test_another_process_maps_the_same_memory(void) {
  msi_segment segment;
  CHECK(!msi_segment_open(&segment, LARGE));
  segment.memory[0] = 1;
  segment.memory[SMALL - 1] = 2;
  msi_segment_id id = msi_segment_identify(&segment);
  CHECK(in_child(write_to, &id) == 0);
  CHECK(segment.memory[1] == 3);
  msi_segment_close(&segment);
}

static pid_t start_maker(msi_segment_id *id) {
  int ends[2];
  CHECK(!pipe(ends));
  pid_t maker = fork();
  if (!maker) {
    msi_segment segment;
    msi_segment_open(&segment, SMALL);
    segment.memory[7] = 7;
    *id = msi_segment_identify(&segment);
    if (write(ends[1], id, sizeof *id) != sizeof *id) _exit(1);
    for (;;) pause();
  }
  CHECK(read(ends[0], id, sizeof *id) == sizeof *id);
  close(ends[0]);
  close(ends[1]);
  return maker;
}

static void test_memory_outlives_the_process_that_made_it(void) {
  msi_segment_id id;
  msi_segment segment, late;
  pid_t maker = start_maker(&id);
  CHECK(!msi_segment_attach(&segment, &id, SMALL));
  kill(maker, SIGKILL);
  waitpid(maker, NULL, 0);
  CHECK(segment.memory[7] == 7);
  segment.memory[8] = 8;
  CHECK(msi_segment_attach(&late, &id, SMALL) == MPISERVE_ECONFIG);
  CHECK_TEXT(mpiserve_last_error(), "/proc/");
  CHECK_TEXT(mpiserve_last_error(), "PID namespace");
  CHECK(!late.memory);
  msi_segment_close(&segment);
}

static void test_the_number_of_another_process_is_found_out(void) {
  msi_segment mine, other, segment;
  CHECK(!msi_segment_open(&mine, SMALL) && !msi_segment_open(&other, SMALL));
  msi_segment_id id = msi_segment_identify(&mine);
  id.fd = other.fd;
  CHECK(msi_segment_attach(&segment, &id, SMALL) == MPISERVE_ECONFIG);
  CHECK_TEXT(mpiserve_last_error(), "a file of another process");
  msi_segment_close(&mine);
  msi_segment_close(&other);
}

static void test_no_more_than_there_is_can_be_mapped(void) {
  msi_segment mine, segment;
  CHECK(!msi_segment_open(&mine, SMALL));
  msi_segment_id id = msi_segment_identify(&mine);
  CHECK(msi_segment_attach(&segment, &id, LARGE) == MPISERVE_ESTATE);
  CHECK(!segment.memory);
  msi_segment_close(&mine);
}

/* ---- too little memory ---------------------------------------------------------------- */

static void check_needed(size_t bytes, const char *limit) {
  char needed[64];
  msi_segment segment;
  snprintf(needed, sizeof needed, "%zu bytes of memory are needed and ", bytes);
  CHECK(msi_segment_open(&segment, bytes) == MPISERVE_ENOMEM);
  CHECK_TEXT(mpiserve_last_error(), needed);
  CHECK_TEXT(mpiserve_last_error(), " bytes are free (");
  CHECK_TEXT(mpiserve_last_error(), limit);
  CHECK(!segment.memory);
}

static int descriptors(void) {
  int n = 0;
  for (int fd = 0; fd < 1024; fd++) n += fcntl(fd, F_GETFD) >= 0;
  return n;
}

static void test_more_than_is_free_is_an_error_at_once(void) {
  msi_free_memory found = msi_free_memory_find("");
  int before = descriptors();
  CHECK(found.bytes > LARGE && found.limit[0]);
  check_needed((size_t)found.bytes / 4096 * 4096 + ((size_t)4 << 30), found.limit);
  check_needed((size_t)1 << 46, found.limit);
  CHECK(descriptors() == before);
}

static int exceed_file_size(const void *unused) {
  struct rlimit limit = {LARGE, LARGE};
  msi_segment segment;
  CHECK(!unused && !setrlimit(RLIMIT_FSIZE, &limit));
  check_needed(2 * LARGE, "ulimit -f");
  CHECK(!msi_segment_open(&segment, LARGE)); /* just fits */
  return 0;
}

static void test_a_limit_of_file_sizes_kills_nobody(void) {
  CHECK(in_child(exceed_file_size, NULL) == 0);
}

#ifndef __SANITIZE_ADDRESS__ /* which takes all addresses */
static int exceed_addresses(const void *unused) {
  struct rlimit limit = {(rlim_t)256 << 20, (rlim_t)256 << 20};
  CHECK(!unused && !setrlimit(RLIMIT_AS, &limit));
  check_needed((size_t)512 << 20, "ulimit -v");
  return 0;
}

static void test_a_limit_of_addresses_is_named(void) {
  CHECK(in_child(exceed_addresses, NULL) == 0);
}
#endif

/* ---- signals -------------------------------------------------------------------------- */

static volatile sig_atomic_t ticks;
static void tick(int number) { ticks += number != 0; }

static void test_signals_do_not_disturb(void) {
  struct sigaction action = {.sa_handler = tick};
  struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
  msi_segment segment;
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &often, NULL);
  CHECK(!msi_segment_open(&segment, (size_t)64 << 20));
  setitimer(ITIMER_REAL, &never, NULL);
  CHECK(ticks > 0);
  msi_segment_close(&segment);
}

int main(void) {
  test_no_bytes_are_no_segment();
  test_a_segment_is_zero_aligned_and_reserved();
  test_the_file_is_private_and_keeps_its_size();
  test_it_has_no_name();
  test_another_process_maps_the_same_memory();
  test_memory_outlives_the_process_that_made_it();
  test_the_number_of_another_process_is_found_out();
  test_no_more_than_there_is_can_be_mapped();
  test_more_than_is_free_is_an_error_at_once();
  test_a_limit_of_file_sizes_kills_nobody();
#ifndef __SANITIZE_ADDRESS__
  test_a_limit_of_addresses_is_named();
#endif
  test_signals_do_not_disturb();
  return check_result();
}
