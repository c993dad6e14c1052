/* session: the public functions of both sides: open, close, roles, communicators, counters. */
#include <stdlib.h>

#include "api/session.h"
#include "base/error.h"
#include "base/handles.h"
#include "mpi/library.h"

static int check_open(MPI_Comm world, int role) {
  int code = msi_handles_forked() ? msi_not_open("") : msi_library_check_running();
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
  /* Heads clear their lanes before any client writes to them. */
  if (!code) code = msi_world_barrier(&session->world);
  if (!code) code = msi_client_open(&session->client, &session->world, &session->window);
  return code;
}

static int open_session(int index, MPI_Comm world, int role, int code, const char *text) {
  mpiserve_session *made = &msi_sessions[index];
  *made = (mpiserve_session){0};
  int result = msi_world_open(&made->world, world, role, code, text);
  if (result) return result;
  msi_handles_keep_comm(index, made->world.comm);
  if (role == MPISERVE_SIMULATION) result = open_simulation(made);
  if (result) {
    msi_handles_drop_comm(index);
    msi_world_close(&made->world);
    return result;
  }
  size_t bytes = (size_t)made->client.n_services * sizeof *made->client.services;
  msi_handles_own(index, made->client.services, bytes);
  msi_handles_open(index, role, made->world.rank);
  return MPISERVE_OK;
}

static int open_any(MPI_Comm world, int role, int code, const char *text,
                    mpiserve_session **session) {
  int result = check_open(world, role);
  if (result) return result;
  int index = msi_handles_take();
  if (index < 0) return MPISERVE_ENOMEM;
  result = open_session(index, world, role, code, text);
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
  if (session->world.role == MPISERVE_SIMULATION)
    *counters = session->client.counters;
  else
    msi_serving_count(&session->serving, counters);
  counters->rma_operations = session->window.operations;
  counters->rma_to_simulation = session->window.to_simulation;
  counters->thread_polls = session->serving.progress.polls;
  return MPISERVE_OK;
}

int mpiserve_fail(mpiserve_session *session, const char *text) {
  MSI_TURN turn = NULL;
  int code = msi_enter(session, MPISERVE_SIMULATION, &turn);
  return code ? code : msi_client_fail(&session->client, text ? text : "no reason given");
}

/* No rank may free a window that another rank still uses: all ranks meet first. */
static int close_session(mpiserve_session *session) {
  int code = MPISERVE_OK;
  if (session->world.role == MPISERVE_SIMULATION) code = msi_client_close(&session->client);
  int met = session->broken ? MPISERVE_OK : msi_world_barrier(&session->world);
  msi_serving_close(&session->serving); /* also after a failed publish */
  /* Freeing is collective: simulation ranks left when their open failed. */
  int freed = session->broken ? MPISERVE_OK : msi_window_close(&session->window);
  msi_handles_drop_comm((int)(session - msi_sessions)); /* which is freed now */
  msi_world_close(&session->world);
  free(session->descriptions);
  return code ? code : met ? met : freed;
}

int mpiserve_close(mpiserve_session *session) {
  if (!session) return MPISERVE_OK;
  msi_handle *turn; /* which ends before another thread may take the place */
  int code = msi_enter(session, MSI_ANY_ROLE, &turn);
  if (code) return code;
  if (msi_library_finalized()) {
    msi_handles_leave(turn);
    return msi_error(MPISERVE_ESTATE, "close comes before MPI_Finalize");
  }
  int index = (int)(session - msi_sessions);
  msi_handles_close(index);
  code = close_session(session);
  msi_handles_leave(turn);
  msi_handles_give(index);
  return code;
}
