#include "head/serving.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "head/cached.h"
#include "head/capture.h"
#include "head/free_dims.h"
#include "head/guests.h"
#include "head/leases.h"
#include "head/leave.h"
#include "head/loss.h"
#include "head/run.h"
#include "head/silence.h"
#include "head/sleep.h"
#include "mpi/failure.h"

static const int64_t BURIAL_NS = 100000000; /* between two looks for dead clients, or for marks */

int msi_serving_open(msi_serving *serving, const msi_world *world, int n,
                     const mpiserve_description *descriptions, size_t bytes[MSI_PARTS]) {
  *serving = (msi_serving){.backoff = world->backoff};
  memset(bytes, 0, MSI_PARTS * sizeof *bytes);
  int code = msi_segment_open_shown(&serving->memory, (size_t)n * sizeof *serving->brokers);
  if (code)
    return msi_error(code, "no memory for %d services: %s. Give the job more memory", n,
                     mpiserve_last_error());
  serving->brokers = (msi_broker *)serving->memory.memory;
  serving->current = serving->turn = serving->asked = serving->brokers;
  serving->last = serving->brokers + n - 1;
  for (int i = 0; i < n && !code; i++) {
    serving->n = i + 1;
    code = msi_broker_open(&serving->brokers[i], world, &descriptions[i], i, bytes);
  }
  return code;
}

/* The broker thread notes when clients on other nodes ask. */
static void watch_remote(msi_serving *serving, msi_broker *broker) {
  for (int t = 0; t < MSI_TRANSPORTS; t++)
    if (!broker->inboxes[t].transport->same_node)
      msi_progress_watch(&serving->progress, &broker->inboxes[t]);
}

int msi_serving_attach(msi_serving *serving, msi_window *window) {
  int code = MPISERVE_OK, remote = 0;
  for (int i = 0; i < serving->n; i++) {
    msi_broker_attach(&serving->brokers[i], window, &serving->progress);
    msi_cached *cached = serving->brokers[i].assembly.cached;
    if (cached) cached->answered = &serving->answered;
    remote |= serving->brokers[i].remote != 0;
  }
  if (remote) code = msi_progress_open(&serving->progress, window);
  for (int i = 0; i < serving->n && !code; i++) watch_remote(serving, &serving->brokers[i]);
  const msi_inbox *shared = &serving->brokers[0].inboxes[MPISERVE_SHARED];
  if (shared->layout.lanes) serving->header = (msi_section_header *)shared->memory;
  serving->silence =
      (msi_silence){msi_silence_limit(), msi_now(), 0, msi_silence_witness(serving)->remaining};
  return code;
}

void msi_serving_close(msi_serving *serving) {
  msi_progress_stop(&serving->progress); /* which has MPI if something is unanswered still */
  msi_progress_close(&serving->progress);
  msi_capture_close(serving);
  for (int i = 0; i < serving->n; i++) msi_broker_close(&serving->brokers[i]);
  msi_segment_close(&serving->memory);
  *serving = (msi_serving){0};
}

/* Looks at each broker once, or until one closes a batch: the next look begins behind it, so
 * that none is passed over by others that are always ready. */
static int look(msi_serving *serving) {
  msi_broker *broker;
  int i = 0, code;
  do {
    broker = serving->current = serving->turn;
    serving->turn = broker == serving->last ? serving->brokers : broker + 1;
    code = msi_broker_look(broker);
    if (code == MPISERVE_ECHANGE) serving->asked = broker;
    if (code || broker->open) return code;
  } while (++i < serving->n);
  if (msi_silence_witness(serving)->remaining || msi_guests_stay(serving)) return MPISERVE_OK;
  return msi_error(MPISERVE_ECLOSED, "every simulation rank has left the session");
}

/* Where the rank sleeps: in its first section. Where requests wait for others, the last of these
 * wakes it: each of 16 clients would else, on two cores. */
static const msi_wait_address *wait_address_of(const msi_serving *serving,
                                               msi_wait_address *address) {
  int64_t until_ns = 0;
  for (int i = 0; i < serving->n; i++)
    if (!msi_sleep_may(&serving->brokers[i], &until_ns)) return NULL;
  uint32_t wakers = serving->n == 1 ? msi_sleep_missing(serving->brokers) : 1;
  _Atomic uint32_t *asleep = &serving->header->asleep;
  *address = (msi_wait_address){asleep, asleep, 0, wakers, until_ns};
  return address;
}

static int refuse_late(msi_serving *serving, int64_t now) {
  int code = MPISERVE_OK;
  for (int i = 0; i < serving->n && !code; i++)
    code = msi_leases_refuse_late(&serving->brokers[i], now);
  return code;
}

/* A client that has died counts as one that has left. */
static int bury_dead(msi_serving *serving) {
  const msi_world *world = serving->brokers->world;
  int n_dead = msi_failure_look(world), code = MPISERVE_OK;
  for (int i = 0; i < serving->n && !code; i++)
    if (n_dead != serving->n_dead || serving->brokers[i].dead_rows)
      code = msi_loss_of_clients(&serving->brokers[i]);
  serving->n_dead = n_dead;
  return code;
}

/* Not inlined: there it would cost each batch instructions, which save registers. */
__attribute__((noinline)) static int find_marks(msi_serving *serving, int64_t now) {
  int code = MPISERVE_OK;
  if (now < serving->next_marks_ns) return code;
  serving->next_marks_ns = now + BURIAL_NS;
  for (int i = 0; i < serving->n && !code; i++) code = msi_leave_look(&serving->brokers[i]);
  return code;
}

/* All clients leave all services together, so the first broker knows. MPI is the broker thread's if
 * a batch is open. */
int msi_serving_wanted(msi_serving *serving) {
  const msi_broker *broker = serving->brokers;
  msi_progress_stop(&serving->progress);
  msi_failure_look(broker->world);
  for (int t = 0; t < MSI_TRANSPORTS; t++)
    if (broker->inboxes[t].layout.lanes) msi_inbox_sync(&broker->inboxes[t]);
  int wanted = msi_leave_is_wanted(broker);
  if (!wanted && broker->failed_rank < 0) wanted = msi_guests_stay(serving);
  msi_progress_start(&serving->progress);
  return wanted;
}

/* A rank that always has a batch never pauses. Its time is that of the last one: no look at a clock
 * is added. */
static int bury_in_time(msi_serving *serving, int64_t now) {
  if (now < serving->next_burial_ns) return MPISERVE_OK;
  serving->next_burial_ns = now + BURIAL_NS;
  int code = bury_dead(serving);
  return code ? code : find_marks(serving, now);
}

static int no_batch(msi_serving *serving, double timeout) {
  char text[MPISERVE_TEXT_SIZE];
  const char *colon = msi_silence_text(serving, text) ? ": " : "";
  return msi_error(MPISERVE_ETIMEOUT, "no batch within %g s%s%s", timeout, colon, text);
}

/* A sign of life. Clients rely on it for as long as the rank waits. */
static void say_looked(msi_serving *serving, int64_t now) {
  if (!serving->header) return;
  atomic_store_explicit(&serving->header->looked_ns, now, memory_order_relaxed);
  atomic_store_explicit(&serving->header->waits_ns, now, memory_order_relaxed);
}

static void say_found(msi_serving *serving) {
  if (serving->header) atomic_store_explicit(&serving->header->waits_ns, 0, memory_order_relaxed);
}

/* The address takes longer than a look, and most waits end before they need it. */
static int take_a_pause(msi_serving *serving, msi_wait *wait, msi_wait_address *address) {
  int what = msi_wait_before_sleep(wait, &serving->backoff);
  if (what != MSI_WAIT_SPENT) return what;
  return msi_wait_sleep(wait, &serving->backoff, wait_address_of(serving, address));
}

/* Between two looks that found nothing. With a time-out of 0 there is no second one. */
static int pause_for(msi_serving *serving, double timeout, msi_wait *wait,
                     msi_wait_address *address, int64_t *deadline) {
  if (timeout != 0 && !take_a_pause(serving, wait, address)) return MPISERVE_OK;
  int64_t now = msi_now();
  say_looked(serving, now);
  int code = refuse_late(serving, now);
  if (!code) code = bury_dead(serving);
  if (!code) code = find_marks(serving, now);
  if (code) return code;
  if (!*deadline) *deadline = msi_deadline(timeout);
  if (timeout != 0 && msi_now() <= *deadline) return MPISERVE_OK;
  return no_batch(serving, timeout);
}

/* A cache has answered: the next request may come as soon as after a batch, so the wait begins
 * anew. Before that, what a rank does now and then that always has batches. */
static int wait_anew(msi_serving *serving, double timeout, msi_wait *wait,
                     const msi_wait_address *address, int64_t *deadline) {
  int64_t now = msi_now();
  msi_wait_end(wait, address);
  *wait = (msi_wait){0};
  say_looked(serving, now);
  if (!*deadline) *deadline = msi_deadline(timeout);
  if (now > *deadline) return no_batch(serving, timeout);
  int code = now < serving->next_burial_ns ? MPISERVE_OK : refuse_late(serving, now);
  return code ? code : bury_in_time(serving, now);
}

static int wait_for_batch(msi_serving *serving, double timeout, int64_t *deadline) {
  msi_wait wait = {0};
  msi_wait_address address;
  int64_t answered = serving->answered;
  int code;
  do {
    code = pause_for(serving, timeout, &wait, &address, deadline);
    if (!code) code = look(serving);
    if (code || serving->current->open || serving->answered == answered) continue;
    answered = serving->answered;
    code = wait_anew(serving, timeout, &wait, &address, deadline);
  } while (!code && !serving->current->open);
  msi_wait_end(&wait, &address);
  if (*deadline) say_found(serving);
  return code;
}

static void say_busy(msi_serving *serving, int64_t since_ns) {
  if (serving->header)
    atomic_store_explicit(&serving->header->busy_ns, since_ns, memory_order_relaxed);
}

/* A batch goes to a model, which may take long or never end. */
static void begin_batch(msi_serving *serving, msi_broker *broker) {
  msi_life_busy(&broker->life, broker->closed_ns);
  say_busy(serving, broker->closed_ns);
}

static void hand_out(msi_serving *serving, mpiserve_batch *batch) {
  *batch = serving->current->assembly.batch;
  begin_batch(serving, serving->current);
}

/* The time that closed the batch tells whether the caller is due, so that no batch costs a reading
 * of the clock for that. */
static int answer_here(msi_serving *serving, double timeout, int64_t deadline) {
  msi_broker *broker = serving->current;
  if (!broker->engine.by_request) begin_batch(serving, broker);
  int code = msi_run_batch(broker);
  if (code) return code;
  if (!broker->engine.by_request) say_busy(serving, 0);
  if (broker->closed_ns <= deadline) return MPISERVE_OK;
  return msi_error(MPISERVE_ETIMEOUT, "%g s are over, and the engine goes on", timeout);
}

/* Answers batches of services with an engine, until there is one for the caller. Not inlined: there
 * it would cost each batch of a caller 5 instructions, which save registers. */
__attribute__((noinline)) static int run_engines(msi_serving *serving, double timeout,
                                                 int64_t *deadline, mpiserve_batch *batch) {
  int code = MPISERVE_OK;
  if (!*deadline) *deadline = msi_deadline(timeout);
  while (!code && serving->current->engine.run) {
    code = answer_here(serving, timeout, *deadline);
    if (!code) code = bury_in_time(serving, serving->current->closed_ns);
    if (!code) code = look(serving);
    if (!code && !serving->current->open) code = wait_for_batch(serving, timeout, deadline);
  }
  if (serving->current->open) *batch = serving->current->assembly.batch; /* also one that failed */
  return code;
}

int msi_serving_next(msi_serving *serving, double timeout, mpiserve_batch *batch) {
  if (serving->current->open)
    return msi_error(MPISERVE_ESTATE, "the last batch has not been answered");
  serving->calls++;
  msi_progress_stop(&serving->progress);
  say_busy(serving, 0);
  int64_t deadline = 0; /* once it is needed */
  int code = bury_in_time(serving, serving->current->closed_ns);
  if (!code) code = look(serving);
  if (!code && !serving->current->open) code = wait_for_batch(serving, timeout, &deadline);
  if (!code && serving->current->engine.run) code = run_engines(serving, timeout, &deadline, batch);
  if (!code) hand_out(serving, batch);
  msi_progress_start(&serving->progress);
  return code;
}

int msi_serving_poll(msi_serving *serving) {
  if (serving->current->open)
    return msi_error(MPISERVE_ESTATE, "the last batch has not been answered");
  msi_progress_stop(&serving->progress);
  int code = MPISERVE_OK;
  for (int i = 0; i < serving->n && !code; i++) code = msi_broker_poll(&serving->brokers[i]);
  if (!code) code = refuse_late(serving, msi_now());
  msi_progress_start(&serving->progress);
  return code;
}

static int check_service_index(const msi_serving *serving, int service) {
  if (service >= 0 && service < serving->n) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG, "service %d of %d", service, serving->n);
}

int msi_serving_suspend(msi_serving *serving, int service, int suspended) {
  int code = check_service_index(serving, service);
  if (code) return code;
  if (serving->brokers[service].open)
    return msi_error(MPISERVE_ESTATE, "the last batch has not been answered");
  msi_progress_stop(&serving->progress);
  code = msi_broker_suspend(&serving->brokers[service], suspended);
  msi_progress_start(&serving->progress);
  return code;
}

int msi_serving_engine_set(msi_serving *serving, int service, const mpiserve_engine *engine) {
  int code = check_service_index(serving, service);
  if (code) return code;
  if (engine && !engine->run) return msi_error(MPISERVE_EARG, "the engine has no function run");
  if (engine && msi_layout_is_free(&serving->brokers[service].inboxes[0].layout))
    return msi_error(MPISERVE_EARG, "an engine is not told free dimensions, as service %d has",
                     service);
  if (serving->brokers[service].open)
    return msi_error(MPISERVE_ESTATE, "the last batch has not been answered");
  msi_broker *broker = &serving->brokers[service];
  broker->engine = engine ? *engine : (mpiserve_engine){0};
  if (broker->assembly.cached) broker->engine.by_request = 0; /* it may need some of the rows */
  msi_cached_forget(broker);
  int reproducible = broker->description->reproducible;
  msi_assembly_gather(&broker->assembly, reproducible, broker->engine.in_segment);
  return MPISERVE_OK;
}

int msi_serving_rows_set(msi_serving *serving, int service, int rows) {
  int code = check_service_index(serving, service);
  if (code) return code;
  if (serving->brokers[service].description->rows >= MPISERVE_NO_ROWS)
    return msi_error(MPISERVE_EARG, "the tensors of service %d have no rows", service);
  if (serving->brokers[service].open)
    return msi_error(MPISERVE_ESTATE, "the last batch has not been answered");
  msi_progress_stop(&serving->progress);
  code = msi_broker_rows_set(&serving->brokers[service], rows == MPISERVE_TOGETHER);
  msi_progress_start(&serving->progress);
  return code;
}

int msi_serving_room_set(msi_serving *serving, int service, int room) {
  int code = check_service_index(serving, service);
  if (!code) serving->brokers[service].has_room = room != 0;
  return code;
}

int msi_serving_state_set(msi_serving *serving, int service, int state) {
  int code = check_service_index(serving, service);
  return code ? code : msi_broker_enter(&serving->brokers[service], state);
}

int msi_serving_shapes_get(const msi_serving *serving, int64_t *shapes) {
  if (!serving->current->open) return msi_error(MPISERVE_ESTATE, "there is no batch");
  msi_free_dims_get(&serving->current->assembly, shapes);
  return MPISERVE_OK;
}

int msi_serving_shapes_set(msi_serving *serving, int service, int64_t rows, const int64_t *shapes) {
  int code = check_service_index(serving, service);
  if (code) return code;
  msi_broker *broker = &serving->brokers[service];
  return msi_free_dims_set(&broker->assembly, broker->description->name, rows, shapes);
}

int msi_serving_queue_get(const msi_serving *serving, int service, int64_t *rows) {
  int code = check_service_index(serving, service);
  if (!code) *rows = serving->brokers[service].queue.rows;
  return code;
}

int msi_serving_change_get(const msi_serving *serving, mpiserve_change_request *change) {
  int code = msi_change_queue_get(&serving->asked->changes, change);
  if (!code) change->service = (int32_t)(serving->asked - serving->brokers);
  return code;
}

int msi_serving_change_reply(msi_serving *serving, int service, int code, const char *text) {
  int wrong = check_service_index(serving, service);
  if (wrong) return wrong;
  msi_progress_stop(&serving->progress);
  int failed = msi_broker_change_reply(&serving->brokers[service], code, text);
  msi_progress_start(&serving->progress);
  return failed;
}

void msi_serving_count(const msi_serving *serving, mpiserve_counters *counters) {
  _Static_assert(sizeof *counters % sizeof(int64_t) == 0, "counters are of one type");
  int64_t *sums = (int64_t *)counters;
  *counters = (mpiserve_counters){0};
  for (int i = 0; i < serving->n; i++)
    for (size_t k = 0; k < sizeof *counters / sizeof *sums; k++)
      sums[k] += ((const int64_t *)&serving->brokers[i].counters)[k];
  counters->batch_calls = serving->calls;
}

const msi_broker *msi_serving_witness(const msi_serving *serving) {
  const msi_broker *best = serving->brokers;
  for (int i = 1; i < serving->n; i++) {
    const msi_broker *broker = &serving->brokers[i];
    if (best->failed_rank < 0 && broker->failed_rank >= 0) best = broker;
  }
  return best;
}
