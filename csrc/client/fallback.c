#include "client/fallback.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/check.h"

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

/* Some rows of a request, or all. */
typedef struct part {
  int64_t rows;
  void *inputs[MPISERVE_MAX_TENSORS], *outputs[MPISERVE_MAX_TENSORS];
} part;

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

/* Answers rows of a request, or returns its code. */
static int answer(msi_client *client, msi_call *call, const part *p) {
  char why[MPISERVE_TEXT_SIZE];
  int code = msi_message_result(&call->message);
  snprintf(why, sizeof why, "%s", mpiserve_last_error());
  code = call_function(client, &call->service->fallback, p, code, why);
  if (code) return code;
  call->stats.source = MPISERVE_FALLBACK;
  call->stats.fallback_rows = p->rows;
  client->counters.fallbacks++;
  return MPISERVE_OK;
}

static int answer_all(msi_client *client, msi_call *call) {
  if (!call->service->fallback.function || call->message.exposed ||
      !is_the_services(&call->message))
    return msi_message_result(&call->message);
  if (!call->payload.rows) return MPISERVE_OK; /* there is nothing to answer */
  part all = {.rows = call->payload.rows};
  memcpy(all.inputs, call->payload.inputs, sizeof all.inputs);
  memcpy(all.outputs, call->payload.outputs, sizeof all.outputs);
  return answer(client, call, &all);
}

/* ---- rows that fail the check -------------------------------------------------------- */

/* Copies rows of a tensor to where they are dense, or back. */
static void copy_rows(const part *p, const int64_t *rows, size_t bytes, void *tensor, void *dense,
                      int back) {
  for (int64_t i = 0; i < p->rows; i++) {
    uint8_t *at = (uint8_t *)tensor + (size_t)rows[i] * bytes;
    uint8_t *to = (uint8_t *)dense + (size_t)i * bytes;
    memcpy(back ? at : to, back ? to : at, bytes);
  }
}

/* Memory for the tensors of a part; they begin at lines of caches. */
static uint8_t *allocate(const msi_layout *layout, part *p) {
  size_t at[2 * MPISERVE_MAX_TENSORS], bytes = 0;
  const msi_side *in = &layout->inputs, *out = &layout->outputs;
  for (int i = 0; i < in->n + out->n; i++) {
    size_t row = i < in->n ? in->row_bytes[i] : out->row_bytes[i - in->n];
    at[i] = bytes;
    bytes += ((size_t)p->rows * row + MSI_ALIGN - 1) / MSI_ALIGN * MSI_ALIGN;
  }
  uint8_t *memory = aligned_alloc(MSI_ALIGN, bytes);
  for (int i = 0; memory && i < in->n + out->n; i++)
    *(i < in->n ? &p->inputs[i] : &p->outputs[i - in->n]) = memory + at[i];
  return memory;
}

static int answer_rows(msi_client *client, msi_call *call, const int64_t *rows, int64_t n) {
  const msi_layout *layout = &call->service->endpoint->layout;
  part some = {.rows = n};
  uint8_t *memory = allocate(layout, &some);
  if (!memory) return msi_error(MPISERVE_ENOMEM, "no memory for rows that failed the check");
  for (int i = 0; i < layout->inputs.n; i++)
    copy_rows(&some, rows, layout->inputs.row_bytes[i], call->payload.inputs[i], some.inputs[i], 0);
  int code = answer(client, call, &some);
  for (int i = 0; i < layout->outputs.n && !code; i++)
    copy_rows(&some, rows, layout->outputs.row_bytes[i], call->payload.outputs[i], some.outputs[i],
              1);
  free(memory);
  return code;
}

/* Has the result taken the place of an input, as the caller wished? */
static int replaces_inputs(const msi_call *call) {
  const msi_layout *layout = &call->service->endpoint->layout;
  const msi_payload *p = &call->payload;
  for (int i = 0; i < layout->inputs.n; i++)
    for (int j = 0; j < layout->outputs.n; j++) {
      uintptr_t in = (uintptr_t)p->inputs[i], out = (uintptr_t)p->outputs[j];
      if (in < out + (size_t)p->rows * layout->outputs.row_bytes[j] &&
          out < in + (size_t)p->rows * layout->inputs.row_bytes[i])
        return 1;
    }
  return 0;
}

static int cannot_mend(const msi_call *call) {
  return msi_error(call->message.code,
                   "%s; the fallback cannot answer: the outputs are in the place of the inputs",
                   call->message.text);
}

static void fail(msi_call *call, const char *text, int64_t n) {
  call->message.code = MPISERVE_EMODEL;
  snprintf(call->message.text, sizeof call->message.text, "service '%s', %s (%lld of %lld rows)",
           call->service->name, text, (long long)n, (long long)call->payload.rows);
}

/* Finds the rows that are no answers, and has the fallback answer them. */
static int mend(msi_client *client, msi_call *call, int64_t *failed) {
  const mpiserve_service *service = call->service;
  const msi_payload *p = &call->payload;
  char text[256];
  int64_t n = msi_check_failed(&service->endpoint->layout.outputs, p->rows, p->outputs, failed,
                               text, sizeof text);
  client->counters.failed_rows += n;
  fail(call, text, n);
  if (!service->fallback.function) return msi_message_result(&call->message);
  if (replaces_inputs(call)) return cannot_mend(call);
  int together = service->head->description.rows != MPISERVE_INDEPENDENT;
  return together || n == p->rows ? answer_all(client, call) : answer_rows(client, call, failed, n);
}

static int check(msi_client *client, msi_call *call) {
  const msi_side *outputs = &call->service->endpoint->layout.outputs;
  if (msi_check_passes(outputs, call->payload.rows, call->payload.outputs)) return MPISERVE_OK;
  int64_t *failed = malloc((size_t)call->payload.rows * sizeof *failed);
  if (!failed) return msi_error(MPISERVE_ENOMEM, "no memory for rows that failed the check");
  int code = mend(client, call, failed);
  client->counters.errors += code != MPISERVE_OK;
  free(failed);
  return code;
}

/* ---- the end of a request -------------------------------------------------------------- */

int msi_fallback_end(msi_client *client, msi_call *call) {
  if (!call->message.code) return call->service->checked ? check(client, call) : MPISERVE_OK;
  int code = answer_all(client, call);
  client->counters.errors -= !code;
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
  if (!given->service->fallback.function || !is_the_services(message)) return code;
  snprintf(message->text, sizeof message->text, "%s", mpiserve_last_error());
  if (!may_be_written(given)) return answer_all(client, given);
  return msi_error(code,
                   "%s; the fallback cannot answer: the outputs are rows of a buffer, which the "
                   "model may still write",
                   message->text);
}
