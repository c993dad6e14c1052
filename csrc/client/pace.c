#include "client/pace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/call.h"
#include "client/extrapolate.h"
#include "client/request.h"

enum {
  MOST_STEPS = 1000000000, /* of every and lag: sums and products of them do not overflow */
  MOST_UNDER_WAY = 64,
  KEPT = 2 /* answers: what is extrapolated needs two */
};

/* A request of a step, and then its answer. */
typedef struct answer {
  mpiserve_request request; /* id 0: it has ended */
  mpiserve_stats stats;
  uint8_t *memory; /* of the tensors */
  size_t bytes;
  void *inputs[MPISERVE_MAX_TENSORS], *outputs[MPISERVE_MAX_TENSORS];
} answer;

/* Request i since it began anew asks at step begun + i * every, and is answers[i % n]. Those before
 * answered have ended with a result, and the others before asked are under way. */
struct msi_pace {
  uint64_t id;
  mpiserve_service *service;
  mpiserve_pace_options options;
  int64_t step;  /* of the caller's next call: 0, 1, ... */
  int64_t begun; /* the step at which it began, or began anew */
  int64_t asked, answered;
  int64_t rows; /* of all these requests, and their free dimensions, and bytes */
  uint32_t input_dims[MPISERVE_MAX_FREE], output_dims[MPISERVE_MAX_FREE];
  msi_side inputs, outputs;
  struct msi_pace *next;
  int64_t n;
  answer answers[];
};

static answer *answer_at(msi_pace *pace, int64_t i) { return &pace->answers[i % pace->n]; }

static int64_t step_of(const msi_pace *pace, int64_t i) {
  return pace->begun + i * pace->options.every;
}

/* ---- open and close ---------------------------------------------------------------------- */

static int out_of_range(const char *what, int64_t value, int least) {
  return msi_error(MPISERVE_EARG, "%s is %lld: it must be %d to %d steps", what, (long long)value,
                   least, MOST_STEPS);
}

/* What is cancelled when a pace begins anew, and who asks in which step, would depend on time. */
static int check_reproducible(const mpiserve_service *service,
                              const mpiserve_pace_options *options) {
  if (!service->head || !service->head->description.reproducible) return MPISERVE_OK;
  if (options->every == 1 && !options->lag) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG,
                   "service '%s' is reproducible: a pace of it has every = 1 and lag = 0",
                   service->name);
}

static int check_options(const mpiserve_service *service, const mpiserve_pace_options *options) {
  if (options->every < 1 || options->every > MOST_STEPS)
    return out_of_range("every", options->every, 1);
  if (options->lag < 0 || options->lag > MOST_STEPS) return out_of_range("lag", options->lag, 0);
  if (options->lag / options->every >= MOST_UNDER_WAY)
    return msi_error(MPISERVE_EARG,
                     "a lag of %lld steps, with a request every %lld: over %d would be under way",
                     (long long)options->lag, (long long)options->every, MOST_UNDER_WAY);
  int code = check_reproducible(service, options);
  return code || !options->extrapolate ? code : msi_extrapolate_can(service);
}

int msi_pace_open(mpiserve_service *service, const mpiserve_pace_options *options,
                  mpiserve_pace *opened) {
  mpiserve_pace_options wanted = *options;
  if (!wanted.every) wanted.every = 1;
  int code = check_options(service, &wanted);
  if (code) return code;
  msi_client *client = service->client;
  int64_t n = wanted.lag / wanted.every + 1 + KEPT;
  msi_pace *pace = calloc(1, sizeof *pace + (size_t)n * sizeof *pace->answers);
  if (!pace) return msi_error(MPISERVE_ENOMEM, "no memory for a pace");
  pace->id = (uint64_t)client->first_generation << 32 | ++client->n_paces;
  pace->service = service;
  pace->options = wanted;
  pace->n = n;
  pace->next = client->paces;
  client->paces = pace;
  *opened = (mpiserve_pace){pace->id};
  return MPISERVE_OK;
}

msi_pace *msi_pace_find(const mpiserve_service *service, const mpiserve_pace *pace) {
  msi_pace *found = service->client->paces;
  while (found && found->id != pace->id) found = found->next;
  if (found && found->service == service) return found;
  msi_error(MPISERVE_ESTATE, "service '%s': no such pace: it was closed, or is another service's",
            service->name);
  return NULL;
}

void msi_pace_restart(msi_pace *pace) {
  for (int64_t i = pace->answered; i < pace->asked; i++) {
    mpiserve_request *request = &answer_at(pace, i)->request;
    if (request->id) msi_request_cancel(pace->service->client, request);
    request->id = 0;
  }
  pace->asked = pace->answered = 0;
}

static void release(msi_pace *pace) {
  for (int64_t i = 0; i < pace->n; i++) free(pace->answers[i].memory);
  free(pace);
}

void msi_pace_close(msi_pace *pace) {
  msi_pace **at = &pace->service->client->paces;
  while (*at != pace) at = &(*at)->next;
  *at = pace->next;
  msi_pace_restart(pace);
  release(pace);
}

void msi_pace_free_all(msi_client *client) {
  while (client->paces) {
    msi_pace *pace = client->paces;
    client->paces = pace->next;
    release(pace);
  }
}

/* ---- shapes ------------------------------------------------------------------------------ */

static int same_dims(const msi_side *side, const uint32_t *dims) {
  return !side->given || !memcmp(side->given->dims, dims, (size_t)side->n_free * sizeof *dims);
}

static void take_dims(const msi_side *side, uint32_t *dims, msi_side *actual) {
  *actual = *side;
  if (!side->given || !side->n_free) return;
  memcpy(dims, side->given->dims, (size_t)side->n_free * sizeof *dims);
  msi_side_of_dims(side, dims, actual);
}

/* Rows of another number, or of other dimensions, are not those that were asked for. */
static void follow_shapes(msi_pace *pace, int64_t rows) {
  const msi_layout *layout = &pace->service->endpoint->layout;
  if (pace->asked && rows == pace->rows && same_dims(&layout->inputs, pace->input_dims) &&
      same_dims(&layout->outputs, pace->output_dims))
    return;
  msi_pace_restart(pace);
  pace->begun = pace->step;
  pace->rows = rows;
  take_dims(&layout->inputs, pace->input_dims, &pace->inputs);
  take_dims(&layout->outputs, pace->output_dims, &pace->outputs);
}

/* ---- a step ------------------------------------------------------------------------------ */

static int make_room(const msi_pace *pace, answer *a) {
  size_t before = msi_side_place(&pace->inputs, pace->rows, 0, NULL, NULL);
  size_t bytes = msi_side_place(&pace->outputs, pace->rows, before, NULL, NULL);
  if (bytes > a->bytes || !a->memory) {
    free(a->memory);
    a->bytes = 0;
    a->memory = aligned_alloc(MSI_ALIGN, bytes ? bytes : MSI_ALIGN);
    if (!a->memory)
      return msi_error(MPISERVE_ENOMEM, "service '%s': no memory for a request of %zu bytes",
                       pace->service->name, bytes);
    a->bytes = bytes;
  }
  msi_side_place(&pace->inputs, pace->rows, 0, a->memory, a->inputs);
  msi_side_place(&pace->outputs, pace->rows, before, a->memory, a->outputs);
  return MPISERVE_OK;
}

/* The caller's inputs change before the answer is there. */
static int ask(msi_pace *pace, void *const *inputs) {
  answer *a = answer_at(pace, pace->asked);
  int blocks = !pace->asked || !pace->options.lag;
  const mpiserve_options options = {.deadline = pace->options.deadline,
                                    .priority = pace->options.priority};
  int code = make_room(pace, a);
  if (code) return code;
  for (int i = 0; i < pace->inputs.n; i++)
    memcpy(a->inputs[i], inputs[i], (size_t)pace->rows * pace->inputs.row_bytes[i]);
  code = msi_request_submit(pace->service, pace->rows, a->inputs, a->outputs, &options,
                            CALL_TIMED | (blocks ? CALL_BLOCKS : 0), &a->request);
  pace->asked += !code;
  return code;
}

static int asks_now(const msi_pace *pace) { return step_of(pace, pace->asked) == pace->step; }

static int has_due(const msi_pace *pace) {
  if (pace->answered == pace->asked) return 0;
  return !pace->answered || step_of(pace, pace->answered) <= pace->step - pace->options.lag;
}

static int goes_on(msi_pace *pace, int code) {
  return code == MPISERVE_ETIMEOUT && has_due(pace) && answer_at(pace, pace->answered)->request.id;
}

/* This thread's last error is that of the request that is due. */
static int due_failed(const msi_pace *pace, int code) {
  char text[2 * MPISERVE_TEXT_SIZE];
  int64_t age = pace->step - step_of(pace, pace->answered);
  if (!age) return code;
  snprintf(text, sizeof text, "%s", mpiserve_last_error());
  return msi_error(code, "step %lld of a pace, asked %lld step%s before: %s", (long long)pace->step,
                   (long long)age, age > 1 ? "s" : "", text);
}

/* Takes the answer that is due at this step, if there is one: never more than one is. */
static int take_due(msi_pace *pace, double timeout) {
  if (!has_due(pace)) return MPISERVE_OK;
  answer *a = answer_at(pace, pace->answered);
  int code = msi_request_wait(pace->service->client, &a->request, timeout, &a->stats);
  pace->answered += !code;
  return code && !goes_on(pace, code) ? due_failed(pace, code) : code;
}

/* A request that is due has left its slot and its rows before the next one needs them. One that has
 * to wait for these all the same is sent before the caller computes. */
static int ask_and_take(msi_pace *pace, void *const *inputs, double timeout) {
  int asks = asks_now(pace), code = take_due(pace, 0);
  if (goes_on(pace, code)) code = MPISERVE_OK;
  if (!code && asks) code = ask(pace, inputs);
  if (!code) code = take_due(pace, timeout);
  if (!code && asks && pace->answered < pace->asked)
    code = msi_call_progress_all(pace->service->client);
  return code;
}

/* The step ends with this thread's last error, and nothing of what was asked for is left. To the
 * caller MPISERVE_ETIMEOUT says that the step goes on: here it is a head's own code. */
static int fail(msi_pace *pace, int code) {
  char text[2 * MPISERVE_TEXT_SIZE];
  snprintf(text, sizeof text, "%s", mpiserve_last_error());
  msi_pace_restart(pace);
  pace->step++;
  return msi_error(code == MPISERVE_ETIMEOUT ? MPISERVE_EMODEL : code, "%s", text);
}

/* ---- answers ----------------------------------------------------------------------------- */

/* Did one of model, local model and fallback answer all rows? */
static int is_of_one(const msi_pace *pace, const answer *a) {
  int64_t fallback = a->stats.fallback_rows, local = a->stats.local_rows;
  return (!fallback || fallback == pace->rows) && (!local || local == pace->rows);
}

/* Lies the answer of this step on a line through the last two? They must be of one model. */
static int is_on_line(const msi_pace *pace, const answer *before, const answer *last) {
  return pace->options.extrapolate && pace->answered >= 2 &&
         before->stats.generation == last->stats.generation &&
         before->stats.source == last->stats.source && is_of_one(pace, before) &&
         is_of_one(pace, last);
}

static void hold(const msi_pace *pace, const answer *last, void *const *outputs) {
  for (int i = 0; i < pace->outputs.n; i++)
    memcpy(outputs[i], last->outputs[i], (size_t)pace->rows * pace->outputs.row_bytes[i]);
}

static int fill(msi_pace *pace, int64_t age, void *const *outputs, int64_t *extrapolated) {
  const answer *last = answer_at(pace, pace->answered - 1);
  const answer *before = answer_at(pace, pace->answered + pace->n - 2);
  if (age && is_on_line(pace, before, last))
    return msi_extrapolate(pace->service, &pace->outputs, pace->rows, before->outputs,
                           last->outputs, (double)age / (double)pace->options.every, outputs,
                           extrapolated);
  hold(pace, last, outputs);
  return MPISERVE_OK;
}

static void count(mpiserve_counters *counters, int64_t age) {
  counters->paced_steps++;
  counters->paced_age_sum += age;
  if (age > counters->paced_age_max) counters->paced_age_max = age;
}

static int give(msi_pace *pace, void *const *outputs, mpiserve_stats *stats) {
  int64_t age = pace->step - step_of(pace, pace->answered - 1), extrapolated = 0;
  int code = fill(pace, age, outputs, &extrapolated);
  if (code) return code;
  count(&pace->service->client->metrics->counters, age);
  if (stats) {
    *stats = answer_at(pace, pace->answered - 1)->stats;
    stats->age = age;
    stats->extrapolated_rows = extrapolated;
  }
  pace->step++;
  return MPISERVE_OK;
}

int msi_pace_step(msi_pace *pace, int64_t rows, void *const *inputs, void *const *outputs,
                  double timeout, mpiserve_stats *stats) {
  follow_shapes(pace, rows);
  int code = ask_and_take(pace, inputs, timeout);
  if (goes_on(pace, code)) return code;
  if (!code) code = give(pace, outputs, stats);
  return code ? fail(pace, code) : MPISERVE_OK;
}
