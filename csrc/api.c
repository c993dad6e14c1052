/* api: the public functions. They check arguments and call inward. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "live.h"
#include "reload.h"
#include "session.h"

enum { MAX_PRIORITY = 100 };

/* ---- library ------------------------------------------------------------------ */

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const char *mpiserve_version(void) {
  return TEXT(MPISERVE_VERSION_MAJOR) "." TEXT(MPISERVE_VERSION_MINOR) "." TEXT(
      MPISERVE_VERSION_PATCH);
}

const char *mpiserve_mpi_build(void) {
#if defined(MPICH_VERSION)
  return "MPICH " MPICH_VERSION;
#elif defined(OMPI_MAJOR_VERSION)
  return "Open MPI " TEXT(OMPI_MAJOR_VERSION) "." TEXT(OMPI_MINOR_VERSION) "." TEXT(
      OMPI_RELEASE_VERSION);
#else
  return "MPI " TEXT(MPI_VERSION) "." TEXT(MPI_SUBVERSION);
#endif
}

const char *mpiserve_mpi_runtime(void) {
  static char name[64];
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "", version[32];
  int length;
  if (name[0]) return name;
  MPI_Get_library_version(text, &length);
  const char *mpich = strstr(text, "MPICH Version:"), *open = strstr(text, "Open MPI v");
  if (mpich && sscanf(mpich, "MPICH Version: %31s", version) == 1)
    snprintf(name, sizeof name, "MPICH %s", version);
  else if (open && sscanf(open, "Open MPI v%31[0-9.]", version) == 1)
    snprintf(name, sizeof name, "Open MPI %s", version);
  else
    snprintf(name, sizeof name, "%.63s", text);
  return name;
}

/* ---- session -------------------------------------------------------------------- */

static int check_mpi(void) {
  int started = 0, ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  if (started && !ended) return MPISERVE_OK;
  return msi_error(MPISERVE_ESTATE, "MPI is not running: open comes after MPI_Init and close "
                                    "before MPI_Finalize");
}

static int check_open(MPI_Comm world, int role) {
  int code = msi_live_forked() ? msi_not_open("") : check_mpi();
  if (code) return code;
  if (world == MPI_COMM_NULL) return msi_error(MPISERVE_EARG, "world is MPI_COMM_NULL");
  if (role != MPISERVE_SIMULATION && role != MPISERVE_INFERENCE)
    return msi_error(MPISERVE_EARG, "%d is no role", role);
  return msi_world_check_closed(world);
}

static int open_simulation(mpiserve_session *session) {
  const size_t none[MSI_TRANSPORTS] = {0};
  int code = msi_world_publish(&session->world, 0, NULL);
  if (!code) code = msi_window_open(&session->window, &session->world, none);
  /* Heads clear their lanes before anybody writes there. */
  if (!code) code = msi_world_barrier(&session->world);
  if (!code) code = msi_client_open(&session->client, &session->world, &session->window);
  return code;
}

static void forget(mpiserve_session *session) {
  msi_live_remove(session);
  free(session->descriptions);
  free(session);
}

static int open_any(MPI_Comm world, int role, int code, const char *text,
                    mpiserve_session **session) {
  int result = check_open(world, role);
  if (result) return result;
  mpiserve_session *made = calloc(1, sizeof *made);
  if (!made) return msi_error(MPISERVE_ENOMEM, "no memory for a session");
  result = msi_live_add(made);
  if (!result) result = msi_world_open(&made->world, world, role, code, text);
  if (!result && role == MPISERVE_SIMULATION) {
    result = open_simulation(made);
    if (result) msi_world_close(&made->world);
  }
  if (result)
    forget(made);
  else
    *session = made;
  return result;
}

int mpiserve_open(MPI_Comm world, int role, mpiserve_session **session) {
  mpiserve_session *made = NULL;
  if (!session) return msi_null_argument("session");
  int code = open_any(world, role, MPISERVE_OK, "", &made);
  /* A handle of the session that is open must not be lost: it could not be closed any more. */
  if (code != MPISERVE_ESTATE) *session = made;
  return code;
}

/* Before MPI_Init, MPI_Comm_f2c() of Open MPI 4.1.4 aborts. */
int mpiserve_open_f(MPI_Fint world, int role, mpiserve_session **session) {
  int code = check_mpi();
  return code ? code : mpiserve_open(MPI_Comm_f2c(world), role, session);
}

int mpiserve_open_failed(MPI_Comm world, int role, int code, const char *text) {
  mpiserve_session *session = NULL;
  if (code >= 0) return msi_error(MPISERVE_EARG, "%d is not the code of an error", code);
  return open_any(world, role, code, text ? text : mpiserve_strerror(code), &session);
}

int mpiserve_open_failed_f(MPI_Fint world, int role, int code, const char *text) {
  int wrong = check_mpi();
  return wrong ? wrong : mpiserve_open_failed(MPI_Comm_f2c(world), role, code, text);
}

int mpiserve_comm(mpiserve_session *session, MPI_Comm *comm) {
  int code = msi_check_session(session);
  if (code || !comm) return code ? code : msi_null_argument("comm");
  *comm = session->world.peers;
  return MPISERVE_OK;
}

int mpiserve_comm_f(mpiserve_session *session, MPI_Fint *comm) {
  MPI_Comm c;
  if (!comm) return msi_null_argument("comm");
  int code = mpiserve_comm(session, &c);
  if (!code) *comm = MPI_Comm_c2f(c);
  return code;
}

int mpiserve_role_of(mpiserve_session *session, int world_rank, int *role) {
  int code = msi_check_session(session);
  if (code || !role) return code ? code : msi_null_argument("role");
  if (world_rank < 0 || world_rank >= session->world.size)
    return msi_error(MPISERVE_EARG, "rank %d is not in a world of %d", world_rank,
                     session->world.size);
  *role = session->world.roles[world_rank];
  return MPISERVE_OK;
}

int mpiserve_counters_get(mpiserve_session *session, mpiserve_counters *counters) {
  MSI_TURN turn = NULL;
  int code = msi_check_session(session);
  if (!code) code = msi_take_turn(session, &turn);
  if (code || !counters) return code ? code : msi_null_argument("counters");
  if (session->world.role == MPISERVE_SIMULATION)
    *counters = session->client.counters;
  else
    msi_serving_count(&session->serving, counters);
  counters->rma_operations = session->window.operations;
  counters->rma_to_simulation = session->window.to_simulation;
  counters->thread_polls = session->serving.thread.polls;
  return MPISERVE_OK;
}

int mpiserve_fail(mpiserve_session *session, const char *text) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  return code ? code : msi_client_fail(&session->client, text ? text : "no reason given");
}

/* Nobody may free a window that another rank still uses: all meet first. */
int mpiserve_close(mpiserve_session *session) {
  if (!session) return MPISERVE_OK;
  int code = msi_check_session(session), ended = 0;
  if (code) return code;
  MPI_Finalized(&ended);
  if (ended) return msi_error(MPISERVE_ESTATE, "close comes before MPI_Finalize");
  mpiserve_session *turn; /* which ends with the session */
  code = msi_take_turn(session, &turn);
  if (code) return code;
  if (session->world.role == MPISERVE_SIMULATION) code = msi_client_close(&session->client);
  int met = session->broken ? MPISERVE_OK : msi_world_barrier(&session->world);
  if (session->published) msi_serving_close(&session->serving);
  /* Freeing is collective: simulation ranks left when their open failed. */
  int freed = session->broken ? MPISERVE_OK : msi_window_close(&session->window);
  msi_world_close(&session->world);
  forget(session);
  return code ? code : met ? met : freed;
}

/* ---- services and requests --------------------------------------------------------- */

int mpiserve_service_count(mpiserve_session *session, int *count) {
  int code = msi_check_role(session, MPISERVE_SIMULATION);
  if (code || !count) return code ? code : msi_null_argument("count");
  *count = session->client.n_services;
  return MPISERVE_OK;
}

int mpiserve_service_at(mpiserve_session *session, int index, mpiserve_service **service) {
  int code = msi_check_role(session, MPISERVE_SIMULATION);
  if (code || !service) return code ? code : msi_null_argument("service");
  *service = NULL;
  if (index < 0 || index >= session->client.n_services)
    return msi_error(MPISERVE_EARG, "service %d of %d", index, session->client.n_services);
  return msi_client_find(&session->client, session->client.services[index].name, service);
}

int mpiserve_service_find(mpiserve_session *session, const char *name, mpiserve_service **service) {
  int code = msi_check_role(session, MPISERVE_SIMULATION);
  if (code || !name || !service) return code ? code : msi_null_argument(name ? "service" : "name");
  *service = NULL;
  MSI_TURN turn = NULL;
  code = msi_take_turn(session, &turn);
  if (!code) code = msi_client_find(&session->client, name, service);
  return code ? code : msi_client_attach(*service);
}

int mpiserve_service_describe(mpiserve_service *service, mpiserve_description *description,
                              int *replicas, int *head, int *transport) {
  int code = msi_check_service(service);
  if (code) return code;
  if (description) *description = service->head->description;
  if (replicas) *replicas = service->replicas;
  if (head) *head = service->head->rank;
  if (transport) *transport = service->link->transport;
  return MPISERVE_OK;
}

static int match(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                 int n_outputs, const mpiserve_tensor *outputs, int64_t *rows, void **in,
                 void **out) {
  const msi_layout *layout = &service->link->layout;
  *rows = 0;
  int code = msi_side_match(&layout->inputs, service->name, n_inputs, inputs, rows, in);
  if (!code) code = msi_side_match(&layout->outputs, service->name, n_outputs, outputs, rows, out);
  if (!code && *rows > layout->max_rows)
    code = msi_error(MPISERVE_EROWS,
                     "service '%s': %lld rows, the limit is max_batch_rows = %lld; send them in "
                     "pieces, or raise it",
                     service->name, (long long)*rows, (long long)layout->max_rows);
  return code;
}

/* Not a number is out of range. */
static int check_options(const mpiserve_options *options) {
  if (!(options->deadline >= 0))
    return msi_error(MPISERVE_EARG, "a deadline of %g s: it must be positive, or 0 for none",
                     options->deadline);
  if (options->priority < -MAX_PRIORITY || options->priority > MAX_PRIORITY)
    return msi_error(MPISERVE_EARG, "priority %d is not in -%d to %d", (int)options->priority,
                     MAX_PRIORITY, MAX_PRIORITY);
  return MPISERVE_OK;
}

/* In a turn of the session. */
static int submit(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                  int n_outputs, const mpiserve_tensor *outputs, const mpiserve_options *options,
                  int timed, mpiserve_request *request) {
  void *in[MPISERVE_MAX_TENSORS], *out[MPISERVE_MAX_TENSORS];
  int64_t rows;
  if ((!inputs && n_inputs) || (!outputs && n_outputs))
    return msi_null_argument("inputs or outputs");
  *request = (mpiserve_request){0};
  int code = match(service, n_inputs, inputs, n_outputs, outputs, &rows, in, out);
  if (!code && options) code = check_options(options);
  return code ? code : msi_call_submit(service, rows, in, out, options, timed, request);
}

int mpiserve_submit(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                    int n_outputs, const mpiserve_tensor *outputs, mpiserve_request *request) {
  return mpiserve_submit_with(service, n_inputs, inputs, n_outputs, outputs, NULL, request);
}

int mpiserve_submit_with(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                         int n_outputs, const mpiserve_tensor *outputs,
                         const mpiserve_options *options, mpiserve_request *request) {
  MSI_TURN turn = NULL;
  int code = msi_enter_service(service, &turn);
  if (code || !request) return code ? code : msi_null_argument("request");
  return submit(service, n_inputs, inputs, n_outputs, outputs, options, 1, request);
}

int mpiserve_test(mpiserve_session *session, mpiserve_request *request, int *done,
                  mpiserve_stats *stats) {
  MSI_TURN turn = NULL;
  if (stats) *stats = (mpiserve_stats){0};
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  if (code || !request || !done)
    return code ? code : msi_null_argument(request ? "done" : "request");
  code = msi_call_wait(&session->client, request, 0, stats);
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
  return msi_call_wait(&session->client, request, timeout, stats);
}

int mpiserve_cancel(mpiserve_session *session, mpiserve_request *request) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  if (code || !request) return code ? code : msi_null_argument("request");
  return msi_call_cancel(&session->client, request);
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
  code = submit(service, n_inputs, inputs, n_outputs, outputs, NULL, stats != NULL, &request);
  if (!code) code = msi_call_wait(service->client, &request, timeout, stats);
  if (code && request.id) msi_call_cancel(service->client, &request); /* its tensors go now */
  return code;
}

int mpiserve_buffer_take(mpiserve_service *service, int64_t rows, mpiserve_buffer *buffer) {
  MSI_TURN turn = NULL;
  int code = msi_enter_service(service, &turn);
  if (code || !buffer) return code ? code : msi_null_argument("buffer");
  *buffer = (mpiserve_buffer){0};
  int64_t limit = service->link->layout.max_rows;
  if (rows < 1 || rows > limit)
    return msi_error(MPISERVE_EROWS,
                     "service '%s': a buffer of %lld rows: 1 to max_batch_rows = %lld",
                     service->name, (long long)rows, (long long)limit);
  return msi_client_buffer_take(service, rows, buffer);
}

int mpiserve_buffer_give(mpiserve_service *service, mpiserve_buffer *buffer) {
  MSI_TURN turn = NULL;
  int code = msi_enter_service(service, &turn);
  if (code || !buffer) return code ? code : msi_null_argument("buffer");
  return msi_client_buffer_give(service, buffer);
}

/* What a reload and an unload begin with. */
static int enter_named(mpiserve_session *session, const char *name, double timeout,
                       mpiserve_service **service, mpiserve_session **turn) {
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
