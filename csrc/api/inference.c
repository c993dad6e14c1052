/* inference: the public functions of inference ranks. They check arguments and call head/. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/session.h"
#include "base/error.h"
#include "engine/engine.h"
#include "head/cached.h"
#include "head/capture.h"
#include "head/reply.h"
#include "head/shown.h"
#include "head/silence.h"
#include "head/tickets.h"
#include "head/timing.h"

/* ---- publishing --------------------------------------------------------------------- */

static int check_description(const mpiserve_description *d, uint32_t clients) {
  if (!d->name[0] || !memchr(d->name, 0, sizeof d->name))
    return msi_error(MPISERVE_ECONFIG, "a service has no name, or one over %d bytes",
                     MPISERVE_NAME_SIZE - 1);
  if (d->error) return MPISERVE_OK;
  if (d->n_inputs < 1 || d->n_outputs < 1)
    return msi_error(MPISERVE_ECONFIG, "service '%s': at least one input and one output", d->name);
  if (d->max_batch_rows < 1 || d->max_batch_rows > INT32_MAX / 2 || d->max_delay_ns < 0)
    return msi_error(MPISERVE_ECONFIG, "service '%s': max_batch_rows or max_delay out of range",
                     d->name);
  if (d->pool_bytes < 0 || !(d->stickiness >= 0 && d->stickiness <= 1))
    return msi_error(MPISERVE_ECONFIG, "service '%s': pool_bytes or stickiness out of range",
                     d->name);
  if (d->max_queue_rows < 0 || d->on_full < MPISERVE_WAIT || d->on_full > MPISERVE_REJECT)
    return msi_error(MPISERVE_ECONFIG, "service '%s': max_queue_rows or on_full out of range",
                     d->name);
  if (d->reproducible && (d->max_queue_rows || !d->max_delay_ns))
    return msi_error(MPISERVE_ECONFIG,
                     "service '%s': reproducible needs max_delay, and excludes max_queue_rows",
                     d->name);
  if (d->rows < MPISERVE_INDEPENDENT || d->rows > MPISERVE_RAGGED)
    return msi_error(MPISERVE_ECONFIG, "service '%s': rows is %d", d->name, d->rows);
  msi_layout layout;
  int code = msi_layout_init(&layout, d, clients); /* all over one transport: the largest layout */
  return code ? code : msi_cached_check(d, &layout);
}

static int check_names(const mpiserve_description *descriptions, int n) {
  for (int i = 0; i < n; i++)
    if (!strcmp(descriptions[i].name, descriptions[n].name))
      return msi_error(MPISERVE_ECONFIG, "service '%s' is published twice by one rank",
                       descriptions[n].name);
  return MPISERVE_OK;
}

/* A wrong description is published as a failed service, because the world waits for it. */
static int adopt(mpiserve_session *session, int n) {
  mpiserve_description *mine = &session->descriptions[n];
  mine->engine[sizeof mine->engine - 1] = mine->version[sizeof mine->version - 1] = 0;
  mine->error_text[sizeof mine->error_text - 1] = 0;
  int code = check_description(mine, (uint32_t)session->world.n_clients);
  if (!code) code = check_names(session->descriptions, n);
  if (code) {
    mine->error = code;
    snprintf(mine->error_text, MPISERVE_TEXT_SIZE, "%s", mpiserve_last_error());
  }
  if (mine->error) mine->n_inputs = mine->n_outputs = mine->uncertain = 0;
  return code;
}

static int begin_serving(mpiserve_session *session, int n) {
  int code = msi_serving_attach(&session->serving, &session->window);
  if (!code) code = msi_open_profile(session, 0, n);
  if (code) return code;
  msi_timing_attach(&session->serving, &session->profile);
  msi_serving_show(&session->serving, session->shown.metrics);
  return code;
}

static int publish(mpiserve_session *session, int n) {
  size_t bytes[MSI_PARTS];
  int code = msi_world_publish(&session->world, n, session->descriptions);
  if (!code)
    code = msi_world_agree(&session->world, msi_serving_open(&session->serving, &session->world, n,
                                                             session->descriptions, bytes));
  if (!code) code = msi_window_open(&session->window, &session->world, bytes);
  if (!code) code = msi_world_agree(&session->world, begin_serving(session, n));
  session->broken = code != MPISERVE_OK; /* and so on every rank */
  if (!code) session->published = n;
  return code;
}

int mpiserve_publish(mpiserve_session *session, int n, const mpiserve_description *descriptions) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MPISERVE_INFERENCE, &turn), wrong = -1;
  if (code || !descriptions) return code ? code : msi_null_argument("descriptions");
  if (n < 1) return msi_error(MPISERVE_EARG, "%d services", n);
  if (session->descriptions) return msi_error(MPISERVE_ESTATE, "published already");
  session->descriptions = calloc((size_t)n, sizeof *descriptions);
  if (!session->descriptions) return msi_error(MPISERVE_ENOMEM, "no memory for %d services", n);
  memcpy(session->descriptions, descriptions, (size_t)n * sizeof *descriptions);
  for (int i = 0; i < n; i++)
    if (adopt(session, i) && wrong < 0) wrong = i;
  code = publish(session, n);
  if (code || wrong < 0) return code;
  const mpiserve_description *first = &session->descriptions[wrong];
  return msi_error(first->error, "%s", first->error_text);
}

/* ---- batches ------------------------------------------------------------------------ */

int mpiserve_batch_next(mpiserve_session *session, double timeout, mpiserve_batch *batch) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (!code) code = msi_check_timeout(timeout);
  if (code || !batch) return code ? code : msi_null_argument("batch");
  return msi_serving_next(&session->serving, timeout, batch);
}

int mpiserve_engine_load(const char *library, const char *model,
                         const mpiserve_description *description, mpiserve_engine *engine) {
  if (!description) return msi_null_argument("description");
  if (!engine) return msi_null_argument("engine");
  return msi_engine_load(library, model ? model : "", description, engine);
}

void mpiserve_engine_close(mpiserve_engine *engine) { msi_engine_close(engine); }

int mpiserve_engine_set(mpiserve_session *session, int service, const mpiserve_engine *engine) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  return code ? code : msi_serving_engine_set(&session->serving, service, engine);
}

int mpiserve_capture_set(mpiserve_session *session, int service, const mpiserve_capture *capture) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  return code ? code : msi_capture_set(&session->serving, service, capture);
}

int mpiserve_placement_set(mpiserve_session *session, int service,
                           const mpiserve_placement *placement) {
  if (!placement) return msi_null_argument("placement");
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  return code ? code : msi_show_placement(&session->serving, service, placement);
}

int mpiserve_batch_reply(mpiserve_session *session, const void *const *outputs) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !outputs) return code ? code : msi_null_argument("outputs");
  return msi_reply_all(session->serving.current, outputs);
}

int mpiserve_batch_reply_rows(mpiserve_session *session, int64_t rows, const void *const *outputs) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !outputs) return code ? code : msi_null_argument("outputs");
  return msi_reply_rows(session->serving.current, rows, outputs);
}

/* Replies have 16 bits for the code. */
static int check_code(int code) {
  if (code < 0 && code >= INT16_MIN) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG, "%d is not the code of an error", code);
}

int mpiserve_batch_fail(mpiserve_session *session, int code, const char *text) {
  MSI_TURN turn = NULL;
  int wrong = msi_enter_serving(session, &turn);
  if (!wrong) wrong = check_code(code);
  if (wrong) return wrong;
  return msi_reply_fail(session->serving.current, code, text ? text : mpiserve_strerror(code));
}

int mpiserve_batch_clients(mpiserve_session *session, int32_t *clients) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !clients) return code ? code : msi_null_argument("clients");
  return msi_reply_clients(session->serving.current, clients);
}

int mpiserve_batch_shapes_get(mpiserve_session *session, int64_t *shapes) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !shapes) return code ? code : msi_null_argument("shapes");
  return msi_serving_shapes_get(&session->serving, shapes);
}

int mpiserve_result_shapes_set(mpiserve_session *session, int service, int64_t rows,
                               const int64_t *shapes) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !shapes) return code ? code : msi_null_argument("shapes");
  return msi_serving_shapes_set(&session->serving, service, rows, shapes);
}

int mpiserve_change_get(mpiserve_session *session, mpiserve_change_request *change) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !change) return code ? code : msi_null_argument("change");
  return msi_serving_change_get(&session->serving, change);
}

int mpiserve_change_reply(mpiserve_session *session, int service, int code, const char *text) {
  MSI_TURN turn = NULL;
  int wrong = msi_enter_serving(session, &turn);
  if (!wrong && code) wrong = check_code(code);
  if (wrong) return wrong;
  if (code && !text) text = mpiserve_strerror(code);
  return msi_serving_change_reply(&session->serving, service, code, text);
}

int mpiserve_suspend(mpiserve_session *session, int service, int suspended) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  return code ? code : msi_serving_suspend(&session->serving, service, suspended != 0);
}

int mpiserve_state_set(mpiserve_session *session, int service, int state) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  return code ? code : msi_serving_state_set(&session->serving, service, state);
}

int mpiserve_rows_set(mpiserve_session *session, int service, int rows) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code) return code;
  if (rows != MPISERVE_INDEPENDENT && rows != MPISERVE_TOGETHER)
    return msi_error(MPISERVE_EARG, "rows is %d", rows);
  return msi_serving_rows_set(&session->serving, service, rows);
}

int mpiserve_room_set(mpiserve_session *session, int service, int room) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  return code ? code : msi_serving_room_set(&session->serving, service, room != 0);
}

int mpiserve_queue_get(mpiserve_session *session, int service, int64_t *rows) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !rows) return code ? code : msi_null_argument("rows");
  return msi_serving_queue_get(&session->serving, service, rows);
}

int mpiserve_mpi_take(mpiserve_session *session) {
  MSI_TURN turn = NULL;
  int wrong = msi_enter_serving(session, &turn);
  if (!wrong) msi_progress_stop(&session->serving.progress);
  return wrong;
}

int mpiserve_mpi_give(mpiserve_session *session) {
  MSI_TURN turn = NULL;
  int wrong = msi_enter_serving(session, &turn);
  if (!wrong) msi_progress_start(&session->serving.progress);
  return wrong;
}

int mpiserve_peer_error(mpiserve_session *session, int *rank, int *remaining, char *text) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code) return code;
  const msi_broker *witness = msi_serving_witness(&session->serving);
  if (rank) *rank = witness->failed_rank;
  if (remaining) *remaining = (int)witness->remaining;
  if (text) snprintf(text, MPISERVE_TEXT_SIZE, "%s", witness->failed_text);
  return MPISERVE_OK;
}

int mpiserve_wanted_get(mpiserve_session *session, int *wanted) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !wanted) return code ? code : msi_null_argument("wanted");
  *wanted = msi_serving_wanted(&session->serving);
  return MPISERVE_OK;
}

int mpiserve_irregular_get(mpiserve_session *session, int service, int64_t *rounds, char *text) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !rounds) return code ? code : msi_null_argument("rounds");
  if (service < 0 || service >= session->serving.n)
    return msi_error(MPISERVE_EARG, "no service with index %d", service);
  const msi_round *round = &session->serving.brokers[service].round;
  *rounds = round->irregular;
  if (text) memcpy(text, round->text, MPISERVE_TEXT_SIZE);
  return MPISERVE_OK;
}

int mpiserve_crowded_get(mpiserve_session *session, int service, int64_t *batches, int64_t *rows) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !batches || !rows) return code ? code : msi_null_argument("batches or rows");
  if (service < 0 || service >= session->serving.n)
    return msi_error(MPISERVE_EARG, "no service with index %d", service);
  const msi_queue *queue = &session->serving.brokers[service].queue;
  *batches = queue->shared ? 0 : queue->crowded;
  *rows = queue->together_rows;
  return MPISERVE_OK;
}

int mpiserve_waiting_get(mpiserve_session *session, int *why, char *text) {
  char unwanted[MPISERVE_TEXT_SIZE];
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !why) return code ? code : msi_null_argument("why");
  *why = msi_silence_text(&session->serving, text ? text : unwanted);
  return MPISERVE_OK;
}

/* ---- requests that are answered after their batch ------------------------------------ */

int mpiserve_batch_hold(mpiserve_session *session, mpiserve_ticket *tickets) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !tickets) return code ? code : msi_null_argument("tickets");
  return msi_tickets_hold(&session->serving, tickets);
}

int mpiserve_ticket_wanted(mpiserve_session *session, mpiserve_ticket *ticket, int *wanted) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !ticket) return code ? code : msi_null_argument("ticket");
  return wanted ? msi_tickets_wanted(&session->serving, ticket, wanted)
                : msi_null_argument("wanted");
}

int mpiserve_ticket_reply(mpiserve_session *session, mpiserve_ticket *ticket,
                          const void *const *outputs) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !ticket) return code ? code : msi_null_argument("ticket");
  return outputs ? msi_tickets_reply(&session->serving, ticket, outputs)
                 : msi_null_argument("outputs");
}

int mpiserve_ticket_fail(mpiserve_session *session, mpiserve_ticket *ticket, int code,
                         const char *text) {
  MSI_TURN turn = NULL;
  int wrong = msi_enter_serving(session, &turn);
  if (wrong || !ticket) return wrong ? wrong : msi_null_argument("ticket");
  wrong = check_code(code);
  if (wrong) return wrong;
  return msi_tickets_fail(&session->serving, ticket, code, text ? text : mpiserve_strerror(code));
}

int mpiserve_segment_get(mpiserve_session *session, mpiserve_segment *segment) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !segment) return code ? code : msi_null_argument("segment");
  const msi_segment *own = &session->window.segment;
  *segment = (mpiserve_segment){own->memory, (int64_t)own->bytes, own->fd};
  return MPISERVE_OK;
}

static const msi_broker *find_broker(const msi_serving *serving, const char *service) {
  for (int i = 0; i < serving->n; i++)
    if (!strcmp(serving->brokers[i].description->name, service)) return &serving->brokers[i];
  return NULL;
}

int mpiserve_segment_outputs(mpiserve_session *session, const char *service, mpiserve_range *ranges,
                             int *n) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  if (code || !service) return code ? code : msi_null_argument("service");
  if (!ranges || !n) return msi_null_argument(ranges ? "n" : "ranges");
  const msi_broker *broker = find_broker(&session->serving, service);
  if (!broker || broker->description->error)
    return msi_error(MPISERVE_EARG, "this rank does not serve '%s'", service);
  *n = msi_assembly_outputs(&broker->assembly, &session->window.segment, ranges);
  return MPISERVE_OK;
}

int mpiserve_poll(mpiserve_session *session) {
  MSI_TURN turn = NULL;
  int code = msi_enter_serving(session, &turn);
  return code ? code : msi_serving_poll(&session->serving);
}
