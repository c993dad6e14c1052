#include "client/fallback.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/check.h"
#include "client/local.h"

/* A fallback may use other sessions, and these may have fallbacks. */
static _Thread_local const msi_client *running;

int msi_fallback_runs(const msi_client *client) { return running == client; }

/* As the table in mpiserve.h says. What a living head says of a peer is of a simulation rank. */
static int is_the_services(const msi_message *message) {
  switch (message->code) {
    case MPISERVE_EARG:
    case MPISERVE_ESTATE:
    case MPISERVE_ENAME:
    case MPISERVE_EDTYPE:
    case MPISERVE_ESHAPE:
    case MPISERVE_EROWS:
    case MPISERVE_EMPI:
    case MPISERVE_ECANCELLED: return 0;
    case MPISERVE_EPEER: return !message->replied;
    default: return 1;
  }
}

/* Is the error the model's? */
static int is_models(const msi_message *message) {
  return message->code == MPISERVE_EMODEL || message->code < MPISERVE_ECHANGE;
}

static int has_fallback(const mpiserve_service *service) {
  return service->fallback.function || msi_local_wanted(service);
}

int64_t msi_fallback_source(const mpiserve_stats *stats) {
  if (stats->fallback_rows) return MPISERVE_FALLBACK;
  return stats->local_rows ? MPISERVE_LOCAL : MPISERVE_MODEL;
}

/* ---- the function ---------------------------------------------------------------------- */

/* Some rows of a request, or all. */
typedef struct part {
  int64_t rows;
  void *inputs[MPISERVE_MAX_TENSORS], *outputs[MPISERVE_MAX_TENSORS];
} part;

enum { WHY_BYTES = 2 * MPISERVE_TEXT_SIZE };

static int call_function(msi_client *client, const msi_fallback *fallback, const part *p, int code,
                         const char *why) {
  const msi_client *outer = running;
  msi_error(MPISERVE_OK, "%s", ""); /* the next text is the function's */
  running = client;
  int failed = fallback->function(fallback->data, p->rows, (const void *const *)p->inputs,
                                  p->outputs, code, why);
  running = outer;
  if (!failed) return MPISERVE_OK;
  const char *text = mpiserve_last_error();
  if (*text) return msi_error(code, "%s; the fallback failed: %s", why, text);
  return msi_error(code, "%s; the fallback failed: it returned %d", why, failed);
}

/* Answers rows of a request that ends with a code because of why, or returns that. */
static int answer(msi_client *client, msi_call *call, const part *p, int code, const char *why) {
  if (!call->service->fallback.function) return msi_error(code, "%s", why);
  code = call_function(client, &call->service->fallback, p, code, why);
  if (code) return code;
  if (call->stats.local_rows) call->stats.local_rows -= p->rows;
  call->stats.fallback_rows = p->rows;
  call->stats.source = msi_fallback_source(&call->stats);
  client->metrics->counters.fallbacks++;
  return MPISERVE_OK;
}

static part all_of(const msi_call *call) {
  part all = {.rows = call->payload.rows};
  memcpy(all.inputs, call->payload.inputs, sizeof all.inputs);
  memcpy(all.outputs, call->payload.outputs, sizeof all.outputs);
  return all;
}

static int answer_all(msi_client *client, msi_call *call, int code, const char *why) {
  const part all = all_of(call);
  code = answer(client, call, &all, code, why);
  if (!code && call->trusted) memset(call->trusted, 0, (size_t)all.rows);
  return code;
}

/* The code of a request, whose text why becomes. */
static int reason(const msi_call *call, char why[WHY_BYTES]) {
  int code = msi_message_result(&call->message);
  snprintf(why, WHY_BYTES, "%s", mpiserve_last_error());
  return code;
}

/* ---- rows that fail the check, or are not trusted ---------------------------------------- */

/* Copies rows of a tensor to where they are dense, or back. */
static void copy_rows(const part *p, const int64_t *rows, size_t bytes, void *tensor, void *dense,
                      int back) {
  for (int64_t i = 0; i < p->rows; i++) {
    uint8_t *at = (uint8_t *)tensor + (size_t)rows[i] * bytes;
    uint8_t *to = (uint8_t *)dense + (size_t)i * bytes;
    memcpy(back ? at : to, back ? to : at, bytes);
  }
}

/* Memory for the tensors of a part. */
static uint8_t *allocate(const msi_layout *layout, part *p) {
  size_t before = msi_side_place(&layout->inputs, p->rows, 0, NULL, NULL);
  size_t bytes = msi_side_place(&layout->outputs, p->rows, before, NULL, NULL);
  uint8_t *memory = aligned_alloc(MSI_ALIGN, bytes);
  msi_side_place(&layout->inputs, p->rows, 0, memory, p->inputs);
  msi_side_place(&layout->outputs, p->rows, before, memory, p->outputs);
  return memory;
}

/* What a model is not trusted with is what it has to learn. */
static void record(msi_call *call, const part *p) {
  if (call->service->head->description.uncertain)
    call->service->client->record(call->service, p->rows, p->inputs, p->outputs);
}

static int answer_rows(msi_client *client, msi_call *call, const int64_t *rows, int64_t n) {
  char why[WHY_BYTES];
  const msi_side *in = &call->service->endpoint->layout.inputs;
  const msi_side *out = &call->service->endpoint->layout.outputs;
  const msi_payload *payload = &call->payload;
  part some = {.rows = n};
  uint8_t *memory = allocate(&call->service->endpoint->layout, &some);
  if (!memory) return msi_error(MPISERVE_ENOMEM, "no memory for rows that failed the check");
  int seen = msi_side_seen(out);
  for (int i = 0; i < in->n; i++)
    copy_rows(&some, rows, in->row_bytes[i], payload->inputs[i], some.inputs[i], 0);
  for (int i = seen; i < out->n; i++)
    copy_rows(&some, rows, out->row_bytes[i], payload->outputs[i], some.outputs[i], 0);
  int code = answer(client, call, &some, reason(call, why), why);
  for (int i = 0; i < seen && !code; i++)
    copy_rows(&some, rows, out->row_bytes[i], payload->outputs[i], some.outputs[i], 1);
  if (!code) record(call, &some);
  free(memory);
  return code;
}

static int cannot_mend(const msi_call *call) {
  return msi_error(call->message.code,
                   "%s; the fallback cannot answer: the outputs are in the place of the inputs",
                   call->message.text);
}

static const msi_side *outputs_of(const msi_call *call) {
  const msi_layout *layout = &call->service->endpoint->layout;
  return msi_layout_is_free(layout) ? &call->payload.shapes->outputs : &layout->outputs;
}

/* NULL: those of the signature. */
static const msi_check_shapes *shapes_of(const msi_call *call) {
  return msi_layout_is_free(&call->service->endpoint->layout) ? &call->payload.shapes->found : NULL;
}

static void fail(msi_call *call, const char *text, int64_t n) {
  msi_message *message = &call->message;
  message->code = MPISERVE_EMODEL;
  snprintf(message->text, sizeof message->text, "service '%s', %s", call->service->name, text);
  if (outputs_of(call)->has_rows)
    msi_text_append(message->text, sizeof message->text, " (%lld of %lld rows)", (long long)n,
                    (long long)call->payload.rows);
}

static int answer_doubtful(msi_client *client, msi_call *call, const msi_doubts *doubts) {
  char why[WHY_BYTES];
  int together = call->service->head->description.rows != MPISERVE_INDEPENDENT;
  if (!together && doubts->n < call->payload.rows)
    return answer_rows(client, call, doubts->rows, doubts->n);
  const part all = all_of(call);
  int code = answer_all(client, call, reason(call, why), why);
  if (!code) record(call, &all);
  return code;
}

static void mark(const msi_call *call, const msi_doubts *doubts) {
  if (!call->trusted) return;
  memset(call->trusted, 1, (size_t)call->payload.rows);
  for (int64_t i = 0; i < doubts->n; i++) call->trusted[doubts->rows[i]] = 0;
}

/* Finds the rows that are no answers to rely on, and has the function answer them: a local model is
 * the same model, and would answer the same. */
static int mend(msi_client *client, msi_call *call, msi_doubts *doubts) {
  const msi_payload *p = &call->payload;
  msi_check_rows(outputs_of(call), p->rows, p->outputs, shapes_of(call), doubts);
  mark(call, doubts);
  call->stats.untrusted_rows = doubts->n - doubts->failed;
  client->metrics->counters.failed_rows += doubts->failed;
  client->metrics->counters.untrusted_rows += call->stats.untrusted_rows;
  int has_function = call->service->fallback.function != NULL;
  if (!has_function && !doubts->failed) return MPISERVE_OK;
  fail(call, doubts->text, doubts->failed ? doubts->failed : doubts->n);
  if (!has_function) return msi_message_result(&call->message);
  return msi_calls_replace_inputs(call) ? cannot_mend(call) : answer_doubtful(client, call, doubts);
}

static int check(msi_client *client, msi_call *call) {
  if (msi_check_passes(outputs_of(call), call->payload.rows, call->payload.outputs)) {
    if (call->trusted) memset(call->trusted, 1, (size_t)call->payload.rows);
    return MPISERVE_OK;
  }
  msi_doubts doubts = {.rows = malloc((size_t)call->payload.rows * sizeof *doubts.rows)};
  if (!doubts.rows) return msi_error(MPISERVE_ENOMEM, "no memory for rows that failed the check");
  int code = mend(client, call, &doubts);
  free(doubts.rows);
  return code;
}

/* Checks what a model has answered. */
static int accept(msi_client *client, msi_call *call) {
  if (call->service->checked) return check(client, call);
  if (call->trusted) memset(call->trusted, 1, (size_t)call->payload.rows);
  return MPISERVE_OK;
}

/* ---- the local model -------------------------------------------------------------------- */

/* Has the model failed on these rows? Then a local one, which is the same, would too. But where the
 * head has no model, it says so with the same codes. */
static int failed_on_rows(const msi_message *message) {
  return message->replied && is_models(message) && msi_endpoint_serves(message->endpoint);
}

/* Returns whether it has answered; if not, why says so too. */
static int answer_locally(msi_client *client, msi_call *call, char why[WHY_BYTES]) {
  const msi_payload *p = &call->payload;
  if (!msi_local_wanted(call->service) || failed_on_rows(&call->message)) return 0;
  if (msi_local_answer(call->service, p->rows, p->inputs, p->outputs, why)) {
    msi_text_append(why, WHY_BYTES, "; the local model failed: %s", mpiserve_last_error());
    return 0;
  }
  call->stats.local_rows = p->rows;
  call->stats.source = MPISERVE_LOCAL;
  client->metrics->counters.local_answers++;
  return 1;
}

/* ---- the end of a request -------------------------------------------------------------- */

/* Has a model begun with it, as far as this rank knows? */
static int may_have_begun(const msi_message *message) {
  return message->replied ? is_models(message) : message->code == MPISERVE_EPEER;
}

/* Are the inputs gone, or some of them? */
static int has_lost_inputs(const msi_call *call) {
  return (may_have_begun(&call->message) && msi_calls_overwritten(call)) ||
         (call->arriving && msi_calls_replace_inputs(call));
}

static int go_on(msi_client *client, msi_call *call) {
  char why[WHY_BYTES];
  int code = reason(call, why);
  if (!has_fallback(call->service) || call->message.exposed || !is_the_services(&call->message))
    return code;
  if (!call->payload.rows) return MPISERVE_OK; /* there is nothing to answer */
  if (has_lost_inputs(call)) return cannot_mend(call);
  if (!answer_locally(client, call, why)) return answer_all(client, call, code, why);
  return accept(client, call);
}

int msi_fallback_end(msi_client *client, msi_call *call) {
  int failed = call->message.code != MPISERVE_OK;
  int code = failed ? go_on(client, call) : accept(client, call);
  client->metrics->counters.errors += (code != MPISERVE_OK) - failed;
  return code;
}

/* A model writes to rows of a buffer whether its client still waits or not. */
static int may_be_written(const msi_call *given) {
  return given->state == CALL_IN_FLIGHT && given->payload.output.in_place;
}

int msi_fallback_give_up(msi_client *client, msi_call *given, int code) {
  msi_message *message = &given->message;
  given->stats.rows = given->payload.rows;
  message->code = code;
  if (!has_fallback(given->service) || !is_the_services(message)) return code;
  snprintf(message->text, sizeof message->text, "%s", mpiserve_last_error());
  if (!may_be_written(given)) return go_on(client, given);
  return msi_error(code,
                   "%s; the fallback cannot answer: the outputs are rows of a buffer, which the "
                   "model may still write",
                   message->text);
}
