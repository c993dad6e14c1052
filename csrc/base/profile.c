#define _GNU_SOURCE
#include "base/profile.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/regions.h"

enum { SUB_BITS = 3, SUBS = 1 << SUB_BITS, POINTS = 14 };

int msi_profile_on;

/* ---- the environment ------------------------------------------------------------------- */

static int32_t level_of(const char *text) {
  if (!text || !*text || !strcmp(text, "off") || !strcmp(text, "0")) return MSI_PROFILE_OFF;
  if (!strcmp(text, "summary")) return MSI_PROFILE_SUMMARY;
  return strcmp(text, "trace") ? -1 : MSI_PROFILE_TRACE;
}

static int32_t events_of(const char *text) {
  char *end;
  if (!text || !*text) return 0;
  long events = strtol(text, &end, 10);
  return *end || events < MSI_TRACE_LEAST || events > MSI_TRACE_MOST ? -1 : (int32_t)events;
}

msi_profile_wish msi_profile_wished(void) {
  return (msi_profile_wish){.level = level_of(getenv("MPISERVE_PROFILE")),
                            .events = events_of(getenv("MPISERVE_PROFILE_EVENTS"))};
}

/* ---- the file -------------------------------------------------------------------------- */

static size_t bytes_of(const msi_part *part) {
  size_t late = (size_t)part->n_heads * (size_t)part->size * sizeof(msi_late);
  return sizeof *part + (size_t)part->n_clients * sizeof(msi_client_part) +
         (size_t)part->n_heads * sizeof(msi_head_part) + late +
         (size_t)part->n_steps * sizeof(msi_step);
}

static int64_t since_1970(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void lay_out(msi_profile *profile) {
  msi_part *part = profile->part;
  profile->clients = (msi_client_part *)(part + 1);
  profile->heads = (msi_head_part *)(profile->clients + part->n_clients);
  profile->late = (msi_late *)(profile->heads + part->n_heads);
  profile->steps = (msi_step *)(profile->late + (size_t)part->n_heads * (size_t)part->size);
}

static void begin(msi_profile *profile, const msi_part *part, void *memory, int fd) {
  size_t bytes = bytes_of(part);
  memset(memory, 0, bytes); /* no page is touched first by a request */
  msi_regions_open();
  profile->part = memory;
  profile->fd = fd;
  *profile->part = *part;
  lay_out(profile);
  profile->part->opened_at_ns = since_1970();
  profile->part->opened_ns = profile->part->seen_ns = msi_now();
  profile->part->version = MSI_PROFILE_VERSION;
  profile->part->bytes = (int32_t)bytes;
  memcpy(profile->part->magic, "mpiserve", sizeof profile->part->magic);
  msi_profile_on++;
}

int msi_profile_open(msi_profile *profile, const msi_part *part) {
  char name[MPISERVE_TEXT_SIZE];
  void *memory = NULL;
  int fd = -1;
  msi_profile_name(part->rank, ".part", name);
  int code = msi_profile_make_folder();
  if (!code) code = msi_profile_map(name, bytes_of(part), &memory, &fd);
  if (!code) begin(profile, part, memory, fd);
  return code;
}

int msi_profile_open_shown(msi_profile *profile, const msi_part *part) {
  int code = msi_segment_open_shown(&profile->segment, bytes_of(part));
  if (!code) begin(profile, part, profile->segment.memory, profile->segment.fd);
  return code;
}

void msi_profile_end(msi_profile *profile) {
  if (!profile->part) return;
  int64_t now = msi_now();
  msi_profile_settle(profile);
  if (profile->part->current.begin_ns) msi_profile_step(profile, now);
  profile->part->current.begin_ns = 0;
  profile->part->closed_ns = now;
}

void msi_profile_close(msi_profile *profile) {
  msi_trace_close(&profile->trace);
  if (!profile->part) return;
  if (profile->segment.memory) {
    msi_segment_close(&profile->segment);
  } else {
    munmap(profile->part, (size_t)profile->part->bytes);
    close(profile->fd);
  }
  profile->part = NULL;
  profile->pending = NULL;
  msi_profile_on--;
}

/* ---- times ----------------------------------------------------------------------------- */

static int bucket_of(int64_t ns) {
  uint64_t value = (uint64_t)ns;
  if (value < SUBS) return (int)value;
  int octave = 63 - __builtin_clzll(value);
  int at = ((octave - SUB_BITS + 1) << SUB_BITS) + (int)(value >> (octave - SUB_BITS) & (SUBS - 1));
  return at < MSI_BUCKETS ? at : MSI_BUCKETS - 1;
}

void msi_timing_add(msi_timing *timing, int64_t ns) {
  timing->count++;
  timing->sum_ns =
      (int64_t)((uint64_t)timing->sum_ns + (uint64_t)ns); /* any, of a corrupted head */
  if (ns > timing->most_ns) timing->most_ns = ns;
  timing->buckets[bucket_of(ns)]++;
}

static void add_step(msi_step *sum, const msi_step *step) {
  sum->length_ns += step->length_ns;
  sum->requests += step->requests;
  sum->waited_ns += step->waited_ns;
  for (int i = 0; i < MPISERVE_STAGES; i++) sum->stages_ns[i] += step->stages_ns[i];
}

static void trace_step(const msi_trace *trace, const msi_step *step) {
  if (!trace->file) return;
  *msi_trace_next(trace) =
      (msi_event){.kind = MSI_EVENT_STEP,
                  .service = -1,
                  .peer = -1,
                  .requests = (uint32_t)step->requests,
                  .times = {step->begin_ns, step->begin_ns + step->length_ns, step->waited_ns}};
  msi_trace_put(trace);
}

/* What was before the first step belongs to none. */
void msi_profile_step(msi_profile *profile, int64_t now_ns) {
  msi_part *part = profile->part;
  msi_step *step = &part->current;
  msi_profile_settle(profile);
  if (step->begin_ns) {
    step->length_ns = now_ns - step->begin_ns;
    profile->steps[part->steps++ % part->n_steps] = *step;
    add_step(&part->all, step);
    trace_step(&profile->trace, step);
    msi_timing_add(&part->step_length, step->length_ns);
    msi_timing_add(&part->step_waited, step->waited_ns);
  } else {
    part->all.begin_ns = now_ns;
  }
  *step = (msi_step){.begin_ns = now_ns};
}

/* ---- a request ------------------------------------------------------------------------- */

/* From one point to the next one: the times of a stage, and which part of them the caller waited.
 */
typedef struct tally {
  int64_t ns[MPISERVE_STAGES], waited_ns[MPISERVE_STAGES];
} tally;

static int64_t between(int64_t low, int64_t ns, int64_t high) {
  return ns < low ? low : ns < high ? ns : high;
}

/* Where clocks differ, a request and its reply take the same time each; or the request takes half
 * of the least time that both have ever taken, if the client was not there when the reply came. */
static int64_t offset_of(msi_client_part *client, const msi_client_times *t) {
  int64_t flight = t->seen_ns - t->sent_ns - (t->head.replied_ns - t->head.taken_ns);
  if (flight < 0) flight = 0;
  int was_there = t->entered_ns <= t->sent_ns;
  if (was_there && (!client->least_flight_ns || flight < client->least_flight_ns))
    client->least_flight_ns = flight;
  if (!was_there && flight > client->least_flight_ns) flight = client->least_flight_ns;
  return t->sent_ns + flight / 2 - t->head.taken_ns;
}

/* Each is between its neighbours: a head reads the clock once for all requests that it finds at one
 * look, so that one which came in between seems to be taken before it was sent. */
static void find_points(msi_client_part *client, const msi_client_times *t,
                        int64_t points[POINTS]) {
  const msi_head_times *h = &t->head;
  int64_t shift = t->same_clock ? 0 : offset_of(client, t), free_ns = h->free_ns + shift;
  int64_t *p = points;
  p[0] = t->submitted_ns;
  p[1] = t->begun_ns;
  p[2] = t->sent_ns;
  p[4] = between(p[2], h->taken_ns + shift, t->seen_ns);
  p[3] = between(p[2], free_ns, p[4]);
  p[6] = between(p[4], h->closed_ns + shift, t->seen_ns);
  p[5] = between(p[4], free_ns, p[6]);
  p[7] = between(p[6], h->gathered_ns + shift, t->seen_ns);
  p[8] = between(p[7], h->computed_ns + shift, t->seen_ns);
  p[9] = between(p[8], h->replied_ns + shift, t->seen_ns);
  p[10] = between(p[9], t->entered_ns, t->seen_ns);
  p[11] = t->seen_ns;
  p[12] = t->ended_ns;
  p[13] = t->returned_ns;
}

/* While it was sent at once the caller waited too. */
static void add_span(tally *sums, const msi_client_times *t, int stage, int64_t from, int64_t to) {
  int at_once = !t->is_late && to <= t->sent_ns;
  int64_t begin = at_once || t->entered_ns < from ? from : t->entered_ns;
  sums->ns[stage] += to - from;
  if (to > begin) sums->waited_ns[stage] += to - begin;
}

static void add_answered(tally *sums, msi_client_part *client, const msi_client_times *t) {
  static const uint8_t STAGES[POINTS - 1] = {
      MPISERVE_STAGE_SLOT,      MPISERVE_STAGE_COPY_IN, MPISERVE_STAGE_QUEUE,
      MPISERVE_STAGE_TRANSPORT, MPISERVE_STAGE_QUEUE,   MPISERVE_STAGE_BATCH,
      MPISERVE_STAGE_COPY_IN,   MPISERVE_STAGE_ENGINE,  MPISERVE_STAGE_REPLY,
      MPISERVE_STAGE_TAKE,      MPISERVE_STAGE_BACK,    MPISERVE_STAGE_COPY_OUT,
      MPISERVE_STAGE_TAKE};
  int64_t points[POINTS];
  find_points(client, t, points);
  for (int i = 0; i < POINTS - 1; i++)
    if (points[i + 1] > points[i]) add_span(sums, t, STAGES[i], points[i], points[i + 1]);
}

/* A head has refused it, or never answered; or something else has. */
static void add_unanswered(tally *sums, const msi_client_times *t) {
  int64_t sent = t->sent_ns ? t->sent_ns : t->returned_ns;
  int64_t begun = t->sent_ns ? t->begun_ns : t->returned_ns;
  add_span(sums, t, MPISERVE_STAGE_SLOT, t->submitted_ns, begun);
  add_span(sums, t, MPISERVE_STAGE_COPY_IN, begun, sent);
  add_span(sums, t, MPISERVE_STAGE_UNANSWERED, sent, t->returned_ns);
}

void msi_profile_settle_pending(msi_profile *profile) {
  msi_client_part *client = profile->pending;
  const msi_client_times *times = &profile->pending_times;
  tally sums = {0};
  msi_part *part = profile->part;
  if (times->is_answered)
    add_answered(&sums, client, times);
  else
    add_unanswered(&sums, times);
  for (int i = 0; i < MPISERVE_STAGES; i++) {
    if (!sums.ns[i]) continue;
    msi_timing_add(&client->stages[i], sums.ns[i]);
    client->waited_ns += sums.waited_ns[i];
    client->waited_stages_ns[i] += sums.waited_ns[i];
    part->current.waited_ns += sums.waited_ns[i];
    part->current.stages_ns[i] += sums.waited_ns[i];
  }
  part->current.requests++;
  msi_timing_add(&client->total, times->returned_ns - times->submitted_ns);
  profile->pending = NULL;
}

void msi_profile_add(msi_profile *profile, msi_client_part *client, const msi_client_times *times) {
  msi_profile_settle(profile);
  profile->pending = client;
  profile->pending_times = *times;
  profile->part->seen_ns = times->returned_ns;
}
