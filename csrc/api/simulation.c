/* simulation: the public functions of simulation ranks: services, requests, buffers, changes. */
#include <string.h>

#include "api/session.h"
#include "base/error.h"
#include "client/buffer.h"
#include "client/life.h"
#include "client/pace.h"
#include "client/recording.h"
#include "client/reload.h"
#include "client/request.h"
#include "client/scale.h"

enum { MAX_PRIORITY = 100 };

int mpiserve_service_count(mpiserve_session *session, int *count) {
  MSI_READER reader = NULL;
  int code = msi_read(session, MPISERVE_SIMULATION, &reader);
  if (code || !count) return code ? code : msi_null_argument("count");
  *count = session->client.n_services;
  return MPISERVE_OK;
}

int mpiserve_service_at(mpiserve_session *session, int index, mpiserve_service **service) {
  MSI_READER reader = NULL;
  int code = msi_read(session, MPISERVE_SIMULATION, &reader);
  if (code || !service) return code ? code : msi_null_argument("service");
  *service = NULL;
  if (index < 0 || index >= session->client.n_services)
    return msi_error(MPISERVE_EARG, "service %d of %d", index, session->client.n_services);
  return msi_client_find(&session->client, session->client.services[index].name, service);
}

int mpiserve_service_find(mpiserve_session *session, const char *name, mpiserve_service **service) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  if (code || !name || !service) return code ? code : msi_null_argument(name ? "service" : "name");
  *service = NULL;
  code = msi_client_find(&session->client, name, service);
  return code ? code : msi_client_attach(*service);
}

int mpiserve_service_describe(mpiserve_service *service, mpiserve_description *description,
                              int *replicas, int *head, int *transport) {
  MSI_READER reader = NULL;
  int code = msi_read_service(service, &reader);
  if (code) return code;
  if (description) *description = service->head->description;
  if (replicas) *replicas = service->replicas;
  if (head) *head = service->head->rank;
  const msi_world *world = service->client->world;
  if (transport) *transport = msi_window_transport(world, world->rank, service->head->rank);
  return MPISERVE_OK;
}

int mpiserve_service_state_get(mpiserve_session *session, const char *name, int n,
                               mpiserve_replica_state *state) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  if (code || !name || !state) return code ? code : msi_null_argument(name ? "state" : "name");
  *state = (mpiserve_replica_state){0};
  code = msi_client_has(&session->client, name);
  return code ? code : msi_life_get(&session->client, name, n, state);
}

int mpiserve_service_wait_ready(mpiserve_session *session, const char *name, double timeout) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  if (!code) code = msi_check_timeout(timeout);
  if (code || !name) return code ? code : msi_null_argument("name");
  code = msi_client_has(&session->client, name);
  return code ? code : msi_life_wait(&session->client, name, timeout);
}

static int match(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                 int n_outputs, const mpiserve_tensor *outputs, int64_t *rows, void **in,
                 void **out) {
  const msi_layout *layout = &service->endpoint->layout;
  if ((!inputs && n_inputs) || (!outputs && n_outputs))
    return msi_null_argument("inputs or outputs");
  *rows = MSI_ANY_ROWS;
  int code = msi_side_match(&layout->inputs, service->name, n_inputs, inputs, rows, in);
  if (!code) code = msi_side_match(&layout->outputs, service->name, n_outputs, outputs, rows, out);
  return code;
}

/* A deadline that is not a number is out of range. */
static int check_options(const mpiserve_options *options) {
  if (!(options->deadline >= 0))
    return msi_error(MPISERVE_EARG, "a deadline of %g s: it must be positive, or 0 for none",
                     options->deadline);
  if (options->priority < -MAX_PRIORITY || options->priority > MAX_PRIORITY)
    return msi_error(MPISERVE_EARG, "priority %d is not in -%d to %d", (int)options->priority,
                     MAX_PRIORITY, MAX_PRIORITY);
  return MPISERVE_OK;
}

/* The caller has the turn of the session. */
static int submit(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                  int n_outputs, const mpiserve_tensor *outputs, const mpiserve_options *options,
                  int how, mpiserve_request *request) {
  void *in[MPISERVE_MAX_TENSORS], *out[MPISERVE_MAX_TENSORS];
  int64_t rows;
  *request = (mpiserve_request){0};
  int code = match(service, n_inputs, inputs, n_outputs, outputs, &rows, in, out);
  if (!code && options) code = check_options(options);
  return code ? code : msi_request_submit(service, rows, in, out, options, how, request);
}

int mpiserve_submit(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                    int n_outputs, const mpiserve_tensor *outputs, const mpiserve_options *options,
                    mpiserve_request *request) {
  MSI_TURN turn = NULL;
  int code = msi_enter_service(service, &turn);
  if (code || !request) return code ? code : msi_null_argument("request");
  return submit(service, n_inputs, inputs, n_outputs, outputs, options, CALL_TIMED, request);
}

int mpiserve_test(mpiserve_session *session, mpiserve_request *request, int *done,
                  mpiserve_stats *stats) {
  MSI_TURN turn = NULL;
  if (stats) *stats = (mpiserve_stats){0};
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  if (code || !request || !done)
    return code ? code : msi_null_argument(request ? "done" : "request");
  code = msi_request_wait(&session->client, request, 0, stats);
  *done = !request->id || code != MPISERVE_ETIMEOUT;
  return *done ? code : MPISERVE_OK;
}

int mpiserve_wait(mpiserve_session *session, mpiserve_request *request, double timeout,
                  mpiserve_stats *stats) {
  MSI_TURN turn = NULL;
  if (stats) *stats = (mpiserve_stats){0};
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  if (!code) code = msi_check_timeout(timeout);
  if (code || !request) return code ? code : msi_null_argument("request");
  return msi_request_wait(&session->client, request, timeout, stats);
}

int mpiserve_cancel(mpiserve_session *session, mpiserve_request *request) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  if (code || !request) return code ? code : msi_null_argument("request");
  return msi_request_cancel(&session->client, request);
}

int mpiserve_infer(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                   int n_outputs, const mpiserve_tensor *outputs, double timeout,
                   mpiserve_stats *stats) {
  MSI_TURN turn = NULL;
  mpiserve_request request = {0};
  if (stats) *stats = (mpiserve_stats){0};
  int code = msi_enter_service(service, &turn);
  if (!code) code = msi_check_timeout(timeout);
  if (code) return code;
  int how = CALL_BLOCKS | (stats ? CALL_TIMED : 0);
  code = submit(service, n_inputs, inputs, n_outputs, outputs, NULL, how, &request);
  if (!code) code = msi_request_wait(service->client, &request, timeout, stats);
  if (code && request.id) /* the caller reuses its tensors now */
    code = msi_request_give_up(service->client, &request, code, stats);
  return code;
}

int mpiserve_pace_open(mpiserve_service *service, const mpiserve_pace_options *options,
                       mpiserve_pace *pace) {
  MSI_TURN turn = NULL;
  const mpiserve_pace_options none = {0};
  int code = msi_enter_service(service, &turn);
  if (code || !pace) return code ? code : msi_null_argument("pace");
  *pace = (mpiserve_pace){0};
  if (!options) options = &none;
  const mpiserve_options of_requests = {options->deadline, options->priority, NULL, NULL};
  code = check_options(&of_requests);
  return code ? code : msi_pace_open(service, options, pace);
}

/* The common beginning of calls of a pace. */
static int enter_pace(mpiserve_service *service, const mpiserve_pace *pace, msi_pace **found,
                      msi_handle **turn) {
  *found = NULL; /* gcc warns else: it does not see that an error is one */
  int code = msi_enter_service(service, turn);
  if (code || !pace) return code ? code : msi_null_argument("pace");
  *found = msi_pace_find(service, pace);
  return *found ? MPISERVE_OK : MPISERVE_ESTATE;
}

int mpiserve_pace_step(mpiserve_service *service, const mpiserve_pace *pace, int n_inputs,
                       const mpiserve_tensor *inputs, int n_outputs, const mpiserve_tensor *outputs,
                       double timeout, mpiserve_stats *stats) {
  MSI_TURN turn = NULL;
  msi_pace *found;
  void *in[MPISERVE_MAX_TENSORS], *out[MPISERVE_MAX_TENSORS];
  int64_t rows;
  if (stats) *stats = (mpiserve_stats){0};
  int code = enter_pace(service, pace, &found, &turn);
  if (!code) code = msi_check_timeout(timeout);
  if (!code) code = match(service, n_inputs, inputs, n_outputs, outputs, &rows, in, out);
  return code ? code : msi_pace_step(found, rows, in, out, timeout, stats);
}

int mpiserve_pace_restart(mpiserve_service *service, const mpiserve_pace *pace) {
  MSI_TURN turn = NULL;
  msi_pace *found;
  int code = enter_pace(service, pace, &found, &turn);
  if (!code) msi_pace_restart(found);
  return code;
}

int mpiserve_pace_close(mpiserve_service *service, mpiserve_pace *pace) {
  MSI_TURN turn = NULL;
  msi_pace *found;
  int code = enter_pace(service, pace, &found, &turn);
  if (code) return code;
  msi_pace_close(found);
  *pace = (mpiserve_pace){0};
  return MPISERVE_OK;
}

int mpiserve_record(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                    int n_outputs, const mpiserve_tensor *outputs, int *kept) {
  MSI_TURN turn = NULL;
  void *in[MPISERVE_MAX_TENSORS], *out[MPISERVE_MAX_TENSORS];
  int64_t rows;
  int unused, *is_kept = kept ? kept : &unused;
  *is_kept = 0;
  int code = msi_enter_service(service, &turn);
  if (!code) code = match(service, n_inputs, inputs, n_outputs, outputs, &rows, in, out);
  return code ? code : msi_recording_put(service, rows, in, out, is_kept);
}

int mpiserve_fallback_set(mpiserve_service *service,
                          int (*function)(void *data, int64_t rows, const void *const *inputs,
                                          void *const *outputs, int code, const char *why),
                          void *data) {
  MSI_TURN turn = NULL;
  int code = msi_enter_service(service, &turn);
  if (!code && function && msi_layout_is_free(&service->endpoint->layout))
    code = msi_error(MPISERVE_EARG, "service '%s' has free dimensions: it can have no fallback",
                     service->name);
  if (!code) service->fallback = (msi_fallback){function, data};
  return code;
}

int mpiserve_buffer_take(mpiserve_service *service, int64_t rows, mpiserve_buffer *buffer) {
  MSI_TURN turn = NULL;
  int code = msi_enter_service(service, &turn);
  if (code || !buffer) return code ? code : msi_null_argument("buffer");
  *buffer = (mpiserve_buffer){0};
  int64_t limit = service->endpoint->layout.max_rows;
  if (rows < 1 || rows > limit)
    return msi_error(MPISERVE_EROWS,
                     "service '%s': a buffer of %lld rows: 1 to max_batch_rows = %lld",
                     service->name, (long long)rows, (long long)limit);
  return msi_buffer_take(service, rows, buffer);
}

int mpiserve_buffer_give(mpiserve_service *service, mpiserve_buffer *buffer) {
  MSI_TURN turn = NULL;
  int code = msi_enter_service(service, &turn);
  if (code || !buffer) return code ? code : msi_null_argument("buffer");
  return msi_buffer_give(service, buffer);
}

/* The common beginning of changes of a service. */
static int enter_named(mpiserve_session *session, const char *name, double timeout,
                       mpiserve_service **service, msi_handle **turn) {
  *service = NULL; /* as in enter_pace() */
  int code = msi_enter(session, MPISERVE_SIMULATION, turn);
  if (!code) code = msi_check_timeout(timeout);
  if (code || !name) return code ? code : msi_null_argument("name");
  return msi_client_find(&session->client, name, service);
}

int mpiserve_reload(mpiserve_session *session, const char *name, const char *version,
                    double timeout) {
  MSI_TURN turn = NULL;
  mpiserve_service *service;
  int code = enter_named(session, name, timeout, &service, &turn);
  if (code) return code;
  if (version && strlen(version) >= MPISERVE_NAME_SIZE)
    return msi_error(MPISERVE_EARG, "the name of a version has over %d bytes",
                     MPISERVE_NAME_SIZE - 1);
  return msi_reload(service, version, timeout);
}

int mpiserve_unload(mpiserve_session *session, const char *name, double timeout) {
  MSI_TURN turn = NULL;
  mpiserve_service *service;
  int code = enter_named(session, name, timeout, &service, &turn);
  return code ? code : msi_unload(service, timeout);
}

int mpiserve_scale(mpiserve_session *session, const char *name, int replicas, double timeout) {
  MSI_TURN turn = NULL;
  mpiserve_service *service;
  int code = enter_named(session, name, timeout, &service, &turn);
  return code ? code : msi_scale(service, replicas, timeout);
}

int mpiserve_start(mpiserve_session *session, const char *name, double timeout) {
  MSI_TURN turn = NULL;
  mpiserve_service *service;
  int code = enter_named(session, name, timeout, &service, &turn);
  return code ? code : msi_scale(service, service->planned, timeout);
}

int mpiserve_stop(mpiserve_session *session, const char *name, double timeout) {
  MSI_TURN turn = NULL;
  mpiserve_service *service;
  int code = enter_named(session, name, timeout, &service, &turn);
  return code ? code : msi_scale(service, 0, timeout);
}
