#define _GNU_SOURCE
#include "base/profile.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

static msi_profile profile;

static void open_one(void) {
  const msi_part part = {
      .run = 1, .rank = 3, .size = 5, .n_clients = 2, .n_heads = 1, .n_steps = MSI_STEPS};
  CHECK(!msi_profile_on);
  CHECK(!msi_profile_open(&profile, &part));
  CHECK(msi_profile_on == 1);
}

static int64_t sum_of(const msi_client_part *client) {
  int64_t sum = 0;
  for (int i = 0; i < MPISERVE_STAGES; i++) sum += client->stages[i].sum_ns;
  return sum;
}

/* A request that waited for a slot, on one node. All stages differ in length. */
static msi_client_times times_of_all(void) {
  return (msi_client_times){.submitted_ns = 1000,
                            .begun_ns = 1001,
                            .sent_ns = 1003,
                            .entered_ns = 1150,
                            .seen_ns = 1600,
                            .ended_ns = 1700,
                            .returned_ns = 1900,
                            .is_late = 1,
                            .is_answered = 1,
                            .same_clock = 1,
                            .head = {1010, 1006, 1026, 1058, 1122, 1130}};
}

static void add(msi_client_part *client, const msi_client_times *times) {
  msi_profile_add(&profile, client, times);
  msi_profile_settle(&profile);
}

static void test_each_nanosecond_belongs_to_one_stage(void) {
  static const int64_t EXPECTED[MPISERVE_STAGES] = {1, 2 + 32, 4, 3, 16, 64, 8, 450, 100, 220, 0};
  msi_client_part *client = &profile.clients[0];
  msi_client_times times = times_of_all();
  add(client, &times);
  for (int i = 0; i < MPISERVE_STAGES; i++) CHECK(client->stages[i].sum_ns == EXPECTED[i]);
  CHECK(sum_of(client) == 900 && client->total.sum_ns == 900);
  CHECK(client->waited_ns == 750); /* since it was entered */
  CHECK(client->waited_stages_ns[MPISERVE_STAGE_TAKE] == 200);
  CHECK(client->waited_stages_ns[MPISERVE_STAGE_ENGINE] == 0);
}

/* Of a head that wrote anything: a client must not count what is not there. */
static void test_times_that_cannot_be_add_up_all_the_same(void) {
  msi_client_part *client = &profile.clients[1];
  for (int i = 0; i < 1000; i++) {
    msi_client_times times = times_of_all();
    int64_t *head = (int64_t *)&times.head;
    for (int k = 0; k < 6; k++) head[k] = (int64_t)(random() % 4000) - 1000;
    times.same_clock = i % 2;
    *client = (msi_client_part){0};
    add(client, &times);
    CHECK(sum_of(client) == 900 && client->waited_ns <= 900);
    for (int k = 0; k < MPISERVE_STAGES; k++) CHECK(client->stages[k].sum_ns >= 0);
  }
}

static void test_clocks_of_other_hosts_do_not_matter(void) {
  msi_client_part *client = &profile.clients[1];
  *client = (msi_client_part){0};
  msi_client_times times = times_of_all();
  int64_t *head = (int64_t *)&times.head;
  for (int k = 0; k < 6; k++) head[k] += INT64_C(123456789012);
  times.same_clock = 0;
  times.entered_ns = 1003;
  add(client, &times);
  CHECK(client->stages[MPISERVE_STAGE_ENGINE].sum_ns == 64);
  CHECK(client->stages[MPISERVE_STAGE_BATCH].sum_ns == 16);
  /* 597 ns between send and reply, of which the head knows 120. */
  int64_t out =
      client->stages[MPISERVE_STAGE_TRANSPORT].sum_ns + client->stages[MPISERVE_STAGE_QUEUE].sum_ns;
  CHECK(out == 238 && client->stages[MPISERVE_STAGE_BACK].sum_ns == 239);
}

static void test_without_an_answer(void) {
  msi_client_part *client = &profile.clients[1];
  *client = (msi_client_part){0};
  msi_client_times times = times_of_all();
  times.is_answered = 0;
  add(client, &times);
  CHECK(client->stages[MPISERVE_STAGE_UNANSWERED].sum_ns == 897 && sum_of(client) == 900);
  times.sent_ns = times.begun_ns = 0; /* never sent */
  add(client, &times);
  CHECK(client->stages[MPISERVE_STAGE_SLOT].sum_ns == 1 + 900);
}

static void test_steps(void) {
  int64_t waited = profile.part->current.waited_ns;
  CHECK(waited && !profile.part->steps); /* before the first step: of none */
  msi_profile_step(&profile, 5000);
  CHECK(!profile.part->steps && !profile.part->current.waited_ns);
  msi_client_times times = times_of_all();
  msi_profile_add(&profile, &profile.clients[0], &times);
  for (int i = 1; i <= MSI_STEPS + 1; i++) msi_profile_step(&profile, 5000 + 1000 * i);
  CHECK(profile.part->steps == MSI_STEPS + 1);
  CHECK(profile.part->all.length_ns == 1000 * (MSI_STEPS + 1));
  CHECK(profile.part->all.waited_ns == 750 && profile.part->step_waited.most_ns == 750);
  CHECK(profile.steps[0].begin_ns == 5000 + 1000 * MSI_STEPS); /* the ring has gone round */
  CHECK(profile.steps[1].begin_ns == 6000 && !profile.steps[1].waited_ns);
}

static void test_buckets(void) {
  static msi_timing timing;
  for (int64_t ns = 0; ns < 20; ns++) msi_timing_add(&timing, ns);
  msi_timing_add(&timing, INT64_MAX);
  CHECK(timing.count == 21 && timing.most_ns == INT64_MAX);
  CHECK(timing.buckets[7] == 1 && timing.buckets[8] == 1 && timing.buckets[16] == 2);
  CHECK(timing.buckets[17] == 2 && timing.buckets[MSI_BUCKETS - 1] == 1);
}

/* Whatever ends the process: the file has what was measured. */
static void test_the_file(void) {
  struct stat found;
  char name[MPISERVE_TEXT_SIZE], head[8] = "";
  int64_t bytes = profile.part->bytes;
  msi_profile_name(3, ".part", name);
  CHECK_TEXT(name, "one.parts/rank-3.part");
  FILE *file = fopen(name, "rb");
  CHECK(file && fread(head, 1, sizeof head, file) == sizeof head && !memcmp(head, "mpiserve", 8));
  if (file) fclose(file);
  CHECK(!stat(name, &found) && found.st_size == bytes);
  msi_profile_end(&profile);
  msi_profile_close(&profile);
  CHECK(!msi_profile_on && !profile.part);
  CHECK(!unlink(name));
}

static void test_no_folder(void) {
  const msi_part part = {.size = 1};
  setenv("MPISERVE_PROFILE_FILE", "/proc/none/x.json", 1);
  CHECK(msi_profile_open(&profile, &part) == MPISERVE_ECONFIG);
  CHECK_TEXT(mpiserve_last_error(), "/proc/none/x.parts cannot be written");
  msi_profile_end(&profile);
  msi_profile_close(&profile);
}

int main(void) {
  char folder[] = "/tmp/mpiserve-profile-XXXXXX";
  CHECK(mkdtemp(folder) && !chdir(folder));
  setenv("MPISERVE_PROFILE_FILE", "one.json", 1);
  open_one();
  test_each_nanosecond_belongs_to_one_stage();
  test_times_that_cannot_be_add_up_all_the_same();
  test_clocks_of_other_hosts_do_not_matter();
  test_without_an_answer();
  test_steps();
  test_buckets();
  test_the_file();
  test_no_folder();
  CHECK(!rmdir("one.parts") && !rmdir(folder));
  return check_result();
}
