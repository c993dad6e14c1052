/* session: the public functions of both sides: open, close, roles, communicators, counters. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/session.h"
#include "base/error.h"
#include "base/handles.h"
#include "base/launcher.h"
#include "client/timing.h"
#include "mpi/clocks.h"
#include "mpi/failure.h"
#include "mpi/library.h"
#include "mpi/meeting.h"
#include "mpi/pair.h"
#include "mpi/parts.h"

static int check_running(void) {
  return msi_handles_forked() ? msi_not_open("") : msi_library_check_running();
}

static int check_open(MPI_Comm world, int role) {
  int code = check_running();
  if (code) return code;
  if (world == MPI_COMM_NULL) return msi_error(MPISERVE_EARG, "world is MPI_COMM_NULL");
  if (role < MPISERVE_SIMULATION || role > MPISERVE_TRAINER)
    return msi_error(MPISERVE_EARG, "%d is no role", role);
  return msi_world_check_closed(world);
}

int msi_open_profile(mpiserve_session *session, int n_clients, int n_heads) {
  const msi_world *world = &session->world;
  msi_part part = {.run = world->run,
                   .rank = world->rank,
                   .size = world->size,
                   .role = world->role,
                   .node = world->nodes[world->rank],
                   .n_clients = n_clients,
                   .n_heads = n_heads,
                   .n_steps = n_clients ? MSI_STEPS : 0};
  msi_identity own = msi_identity_own();
  part.pid = own.pid;
  memcpy(part.host, own.host, sizeof part.host);
  int code = MPISERVE_OK;
  if (msi_world_is_guest(world, world->rank)) return code;
  if (world->profile)
    code = msi_profile_open(&session->profile, &part);
  else if (world->measured)
    code = msi_profile_open_shown(&session->profile, &part);
  if (session->profile.part) session->shown.metrics->part_fd = session->profile.fd;
  if (code || !world->trace_events) return code;
  msi_trace *trace = &session->profile.trace;
  code = msi_trace_open(trace, session->profile.part, world->trace_events);
  if (!code) trace->file->clocks[0] = session->clock;
  return code;
}

/* At open and at close, when all ranks are there. */
static void measure_clocks(mpiserve_session *session) {
  msi_trace_file *file = session->profile.trace.file;
  if (!session->world.trace_events) return;
  msi_clocks_measure(&session->world, &session->clock);
  if (file) file->clocks[1] = session->clock;
}

static void show(mpiserve_session *session) {
  const msi_world *world = &session->world;
  msi_metrics first = {.run = world->run,
                       .rank = world->rank,
                       .size = world->size,
                       .role = world->role,
                       .node = world->nodes[world->rank],
                       .launched_ns = world->launched_ns};
  snprintf(first.library, sizeof first.library, "%s", mpiserve_version());
  msi_metrics_open(&session->shown, &first);
}

static int open_client(mpiserve_session *session) {
  const size_t none[MSI_PARTS] = {0};
  int code = msi_world_publish(&session->world, 0, NULL);
  if (!code) code = msi_world_agree(&session->world, MPISERVE_OK); /* that all heads have room */
  if (!code) code = msi_window_open(&session->window, &session->world, none);
  if (code) return code;
  code =
      msi_client_open(&session->client, &session->world, &session->window, session->shown.metrics);
  if (!code) code = msi_open_profile(session, session->client.n_services, 0);
  if (!code) msi_timing_open(&session->client, &session->profile);
  code = msi_world_agree(&session->world, code);
  if (code) msi_client_free(&session->client);
  return code;
}

static void close_all(void);

static int open_session(int index, MPI_Comm world, msi_pair *pair, int role, int code,
                        const char *text) {
  mpiserve_session *made = &msi_sessions[index];
  *made = (mpiserve_session){0};
  int result = msi_world_open(&made->world, world, pair, role, code, text);
  if (result) return result;
  if (!pair) msi_handles_keep_comm(index, made->world.comm);
  show(made);
  measure_clocks(made);
  if (role != MPISERVE_INFERENCE) result = open_client(made);
  if (result) {
    msi_handles_drop_comm(index);
    msi_profile_close(&made->profile);
    msi_metrics_close(&made->shown);
    msi_window_unmap(&made->window);
    msi_world_close(&made->world);
    return result;
  }
  size_t bytes = (size_t)made->client.n_services * sizeof *made->client.services;
  msi_library_at_finalize(close_all);
  msi_launcher_watch();
  msi_handles_own(index, made->client.services, bytes);
  /* Whose functions it may call. */
  int as = role == MPISERVE_INFERENCE ? role : MPISERVE_SIMULATION;
  msi_handles_open(index, as, made->world.rank);
  return MPISERVE_OK;
}

static int open_any(MPI_Comm world, int role, int code, const char *text,
                    mpiserve_session **session) {
  int result = check_open(world, role);
  if (result) return result;
  int index = msi_handles_take();
  if (index < 0) return MPISERVE_ENOMEM;
  result = open_session(index, world, NULL, role, code, text);
  if (result)
    msi_handles_give(index);
  else
    *session = &msi_sessions[index];
  return result;
}

int mpiserve_open(MPI_Comm world, int role, mpiserve_session **session) {
  mpiserve_session *made = NULL;
  if (!session) return msi_null_argument("session");
  int code = open_any(world, role, MPISERVE_OK, "", &made);
  /* The caller keeps the handle of a session that is open, or could never close it. */
  if (code != MPISERVE_ESTATE) *session = made;
  return code;
}

int mpiserve_open_f(MPI_Fint world, int role, mpiserve_session **session) {
  int code = msi_library_check_running();
  return code ? code : mpiserve_open(msi_library_comm(world), role, session);
}

int mpiserve_open_failed(MPI_Comm world, int role, int code, const char *text) {
  mpiserve_session *session = NULL;
  if (code >= 0) return msi_error(MPISERVE_EARG, "%d is not the code of an error", code);
  return open_any(world, role, code, text ? text : mpiserve_strerror(code), &session);
}

int mpiserve_open_failed_f(MPI_Fint world, int role, int code, const char *text) {
  int wrong = msi_library_check_running();
  return wrong ? wrong : mpiserve_open_failed(msi_library_comm(world), role, code, text);
}

/* Only the wait in here can be interrupted. */
static int open_of_pair(msi_pair *pair, int role, mpiserve_session **session) {
  int index = msi_handles_take();
  if (index < 0) {
    msi_pair_close(pair);
    return MPISERVE_ENOMEM;
  }
  int code = open_session(index, MPI_COMM_NULL, pair, role, MPISERVE_OK, "");
  if (code) {
    msi_handles_give(index);
    return code;
  }
  pair->interrupted = NULL;
  *session = &msi_sessions[index];
  return MPISERVE_OK;
}

int mpiserve_open_pair(int file, int peer, int role, int (*interrupted)(void *data), void *data,
                       mpiserve_session **session) {
  msi_pair *pair;
  if (!session) return msi_null_argument("session");
  *session = NULL;
  int code = check_running();
  if (!code) code = msi_pair_open(&pair, file, peer, role);
  if (code) return code;
  pair->interrupted = interrupted;
  pair->data = data;
  return open_of_pair(pair, role, session);
}

int mpiserve_comm(mpiserve_session *session, MPI_Comm *comm) {
  MSI_READER reader = NULL;
  int code = msi_read(session, MSI_ANY_ROLE, &reader);
  if (code || !comm) return code ? code : msi_null_argument("comm");
  *comm = session->world.peers;
  return MPISERVE_OK;
}

int mpiserve_comm_f(mpiserve_session *session, MPI_Fint *comm) {
  MPI_Comm c;
  if (!comm) return msi_null_argument("comm");
  int code = mpiserve_comm(session, &c);
  if (!code) *comm = msi_library_comm_f(c);
  return code;
}

int mpiserve_role_of(mpiserve_session *session, int world_rank, int *role) {
  MSI_READER reader = NULL;
  int code = msi_read(session, MSI_ANY_ROLE, &reader);
  if (code || !role) return code ? code : msi_null_argument("role");
  if (world_rank < 0 || world_rank >= session->world.size)
    return msi_error(MPISERVE_EARG, "rank %d is not in a world of %d", world_rank,
                     session->world.size);
  *role = session->world.roles[world_rank];
  return MPISERVE_OK;
}

int mpiserve_counters_get(mpiserve_session *session, mpiserve_counters *counters) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MSI_ANY_ROLE, &turn);
  if (code || !counters) return code ? code : msi_null_argument("counters");
  if (session->world.role != MPISERVE_INFERENCE)
    *counters = session->shown.metrics->counters;
  else
    msi_serving_count(&session->serving, counters);
  counters->rma_operations = session->window.operations;
  counters->rma_to_simulation = session->window.to_simulation;
  counters->thread_polls = session->serving.progress.polls;
  return MPISERVE_OK;
}

int mpiserve_step(mpiserve_session *session) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  if (code) return code;
  session->window.step++;
  if (session->profile.part) msi_profile_step(&session->profile, msi_now());
  return code;
}

static void sum_up(const msi_profile *from, mpiserve_profile *profile) {
  for (int i = 0; i < from->part->n_clients; i++) {
    const msi_client_part *client = &from->clients[i];
    profile->requests += client->requests;
    profile->total_ns += client->total.sum_ns;
    profile->waited_ns += client->waited_ns;
    for (int k = 0; k < MPISERVE_STAGES; k++) profile->stages_ns[k] += client->stages[k].sum_ns;
  }
}

int mpiserve_profile_get(mpiserve_session *session, mpiserve_profile *profile) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MSI_ANY_ROLE, &turn);
  if (code || !profile) return code ? code : msi_null_argument("profile");
  *profile = (mpiserve_profile){.on = session->world.profile, .run = session->world.run};
  profile->reports = session->world.rank == msi_parts_receiver(&session->world);
  snprintf(profile->file, sizeof profile->file, "%s", msi_profile_file());
  msi_profile_settle(&session->profile);
  if (session->profile.part) sum_up(&session->profile, profile);
  return MPISERVE_OK;
}

int mpiserve_lost_get(mpiserve_session *session, int *count, char *text) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MSI_ANY_ROLE, &turn);
  if (code || !count) return code ? code : msi_null_argument("count");
  *count = msi_failure_sweep(&session->world);
  if (!text) return MPISERVE_OK;
  text[0] = 0;
  msi_failure_name_dead(&session->world, text, MPISERVE_TEXT_SIZE);
  return MPISERVE_OK;
}

int mpiserve_fail(mpiserve_session *session, const char *text) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  if (!code && msi_world_is_guest(&session->world, session->world.rank))
    code = msi_error(MPISERVE_EARG, "gateways and trainers leave, and the session goes on");
  return code ? code : msi_client_fail(&session->client, text ? text : "no reason given");
}

/* What all ranks free together. */
static int free_together(mpiserve_session *session) {
  /* Freeing is collective: simulation ranks left when their open failed. */
  int code = session->broken ? MPISERVE_OK : msi_window_close(&session->window);
  msi_window_unmap(&session->window);
  msi_world_close(&session->world);
  return code;
}

static int some_died(const msi_world *world) {
  char text[MPISERVE_TEXT_SIZE] = "";
  if (!msi_failure_count(world)) return MPISERVE_OK;
  msi_failure_name_dead(world, text, sizeof text);
  return msi_error(MPISERVE_EPEER,
                   "this rank has left, but MPI_Finalize may wait for ever for ranks that ended "
                   "without it: %s; end the process with _exit()",
                   text);
}

/* No rank may free a window that another rank still uses: all ranks meet first. A rank that others
 * do not meet in time, because they compute or have died, goes on without: it has left all heads.
 * What a pair has, each frees alone. */
static int close_session(mpiserve_session *session, int64_t deadline) {
  msi_outcome outcome = {0};
  msi_profile_end(&session->profile);
  if (session->world.role != MPISERVE_INFERENCE)
    msi_outcome_add(&outcome, msi_client_close(&session->client, deadline));
  int met = session->broken || msi_meeting_wait(&session->world, deadline);
  session->left = !met && !session->world.pair;
  msi_serving_close(&session->serving);                 /* also after a failed publish */
  msi_handles_drop_comm((int)(session - msi_sessions)); /* another session may be opened */
  free(session->descriptions);
  if (met && !session->broken) {
    measure_clocks(session);
    msi_parts_gather(&session->world, &session->profile);
  }
  msi_profile_close(&session->profile);
  msi_metrics_close(&session->shown);
  msi_outcome_add(&outcome, session->left ? some_died(&session->world) : free_together(session));
  return msi_outcome_end(&outcome);
}

static int close_open(mpiserve_session *session, int64_t deadline) {
  msi_handle *turn; /* which ends before another thread may take the place */
  int code = msi_enter(session, MSI_ANY_ROLE, &turn);
  if (code) return code;
  if (msi_library_finalized()) {
    msi_handles_leave(turn);
    return msi_error(MPISERVE_ESTATE, "close comes before MPI_Finalize");
  }
  int index = (int)(session - msi_sessions);
  msi_handles_close(index);
  code = close_session(session, deadline);
  int left = session->left;
  msi_handles_leave(turn);
  if (!left) msi_handles_give(index);
  return code;
}

int mpiserve_close_within(mpiserve_session *session, double timeout) {
  if (!session) return MPISERVE_OK;
  int code = msi_check_timeout(timeout);
  return code ? code : close_open(session, msi_deadline(timeout));
}

int mpiserve_close(mpiserve_session *session) {
  return mpiserve_close_within(session, msi_world_close_limit());
}

static void close_open_ones(void) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++)
    if (msi_handles_is_open(&msi_handles[i], MSI_ANY_ROLE))
      close_open(&msi_sessions[i], msi_deadline(msi_world_close_limit()));
}

/* MPI_Finalize waits for all ranks in any case, so there is no limit to what is freed together, but
 * the death of a rank: then it is left as it is. First others are let go. */
static void close_all(void) {
  close_open_ones();
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++) {
    mpiserve_session *session = &msi_sessions[i];
    if (session->left && msi_meeting_wait(&session->world, INT64_MAX)) free_together(session);
    session->left = 0;
  }
}
