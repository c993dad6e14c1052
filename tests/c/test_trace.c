#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/profile.h"
#include "check.h"

static msi_profile profile;

static void open_one(int64_t events) {
  const msi_part part = {.run = 7, .rank = 3, .size = 5, .n_clients = 2, .n_steps = MSI_STEPS};
  CHECK(!msi_profile_open(&profile, &part));
  CHECK(!msi_trace_open(&profile.trace, profile.part, events));
}

static void write_one(int i) {
  *msi_trace_next(&profile.trace) = (msi_event){.kind = MSI_EVENT_STATE, .rows = (uint32_t)i};
  msi_trace_put(&profile.trace);
}

static void test_the_size_is_a_power_of_two(void) {
  open_one(17);
  CHECK(profile.trace.file->n_events == 32 && profile.trace.mask == 31);
  CHECK(profile.trace.file->rank == 3 && profile.trace.file->run == 7);
  CHECK(profile.trace.file->n_services == 2);
  msi_profile_close(&profile);
  CHECK(!profile.trace.file && !msi_profile_on);
}

static void test_the_last_events_are_kept(void) {
  open_one(16);
  for (int i = 0; i < 100; i++) write_one(i);
  CHECK(profile.trace.file->written == 100);
  for (int i = 84; i < 100; i++) CHECK(profile.trace.events[i % 16].rows == (uint32_t)i);
  msi_profile_close(&profile);
}

static void test_steps_are_events(void) {
  open_one(16);
  for (int i = 1; i < 4; i++) msi_profile_step(&profile, 1000 * i);
  CHECK(profile.trace.file->written == 2); /* the third one goes on */
  const msi_event *step = &profile.trace.events[1];
  CHECK(step->kind == MSI_EVENT_STEP && step->times[0] == 2000 && step->times[1] == 3000);
  msi_profile_close(&profile);
}

/* A process that is killed at any moment leaves whole events, and their number. */
static void test_sigkill_loses_nothing(void) {
  int ready[2];
  char name[MPISERVE_TEXT_SIZE], byte = 0;
  CHECK(!pipe(ready));
  pid_t child = fork();
  if (!child) {
    open_one(16);
    for (int i = 0; i < 10; i++) write_one(i);
    if (write(ready[1], &byte, 1) == 1)
      for (;;) pause();
    _exit(1);
  }
  CHECK(read(ready[0], &byte, 1) == 1);
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
  msi_profile_name(3, ".trace", name);
  msi_trace_file file;
  msi_trace_name names[2];
  msi_event events[16];
  FILE *from = fopen(name, "rb");
  CHECK(from && fread(&file, sizeof file, 1, from) == 1);
  CHECK(from && fread(names, sizeof names, 1, from) == 1);
  CHECK(from && fread(events, sizeof events, 1, from) == 1);
  if (from) fclose(from);
  CHECK(file.written == 10 && !memcmp(file.magic, "mpitrace", 8));
  for (int i = 0; i < 10; i++) CHECK(events[i].rows == (uint32_t)i);
}

static void test_what_the_environment_asks_for(void) {
  static const struct {
    const char *level, *events;
    msi_profile_wish wish;
  } CASES[] = {{"", "", {MSI_PROFILE_OFF, 0}},
               {"off", NULL, {MSI_PROFILE_OFF, 0}},
               {"summary", NULL, {MSI_PROFILE_SUMMARY, 0}},
               {"trace", "16", {MSI_PROFILE_TRACE, 16}},
               {"all", "15", {-1, -1}},
               {"trace", "16777217", {MSI_PROFILE_TRACE, -1}},
               {"trace", "many", {MSI_PROFILE_TRACE, -1}}};
  for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
    setenv("MPISERVE_PROFILE", CASES[i].level, 1);
    unsetenv("MPISERVE_PROFILE_EVENTS");
    if (CASES[i].events) setenv("MPISERVE_PROFILE_EVENTS", CASES[i].events, 1);
    msi_profile_wish wish = msi_profile_wished();
    CHECK(wish.level == CASES[i].wish.level && wish.events == CASES[i].wish.events);
  }
}

int main(void) {
  char folder[] = "/tmp/mpiserve-trace-XXXXXX", command[64];
  CHECK(mkdtemp(folder) && !chdir(folder));
  setenv("MPISERVE_PROFILE_FILE", "one.json", 1);
  test_the_size_is_a_power_of_two();
  test_the_last_events_are_kept();
  test_steps_are_events();
  test_sigkill_loses_nothing();
  test_what_the_environment_asks_for();
  snprintf(command, sizeof command, "rm -r %s", folder);
  CHECK(!system(command));
  return check_result();
}
