/* access: checks that a session is open, that this rank has the role, and that no other thread is
 * in a call of it. */
#include "api/session.h"
#include "base/error.h"
#include "base/handles.h"
#include "client/fallback.h"

mpiserve_session msi_sessions[MPISERVE_MAX_SESSIONS];

int msi_null_argument(const char *name) { return msi_error(MPISERVE_EARG, "%s is NULL", name); }

int msi_not_open(const char *what) {
  if (msi_handles_forked())
    return msi_error(MPISERVE_ESTATE,
                     "this process was forked from the one that opened the session, and only that "
                     "one can use it: let workers send their work there, or give them ranks");
  return msi_error(MPISERVE_ESTATE, "%s: it was closed, or never opened", what);
}

/* Of a session that may be any pointer; NULL: it is none. */
static msi_handle *handle_of(const mpiserve_session *session) {
  uintptr_t at = (uintptr_t)session - (uintptr_t)msi_sessions;
  if (at >= sizeof msi_sessions || at % sizeof *session) return NULL;
  return &msi_handles[at / sizeof *session];
}

/* MSI_ANY_ROLE: is it open? The rank of an error is the handle's: the session may be another
 * thread's turn, or closed by now. */
static int check_role(const mpiserve_session *session, int role) {
  if (!session) return msi_null_argument("session");
  const msi_handle *handle = handle_of(session);
  if (handle && msi_handles_is_open(handle, role)) return MPISERVE_OK;
  if (!handle || !msi_handles_is_open(handle, MSI_ANY_ROLE))
    return msi_not_open("the session is not open");
  return msi_error(MPISERVE_EARG, "this is for %s ranks, and rank %d is one of the others",
                   role == MPISERVE_SIMULATION ? "simulation" : "inference",
                   atomic_load_explicit(&handle->rank, memory_order_relaxed));
}

static int service_not_open(void) { return msi_not_open("the session of the service is not open"); }

void msi_read_end(msi_handle *const *reader) {
  if (*reader) msi_handles_read_end(*reader);
}

int msi_read(const mpiserve_session *session, int role, msi_handle **reader) {
  msi_handle *handle = handle_of(session);
  if (!handle || !msi_handles_read(handle, role)) {
    int code = check_role(session, role);
    return code ? code : msi_not_open("the session was not open"); /* it has been opened since */
  }
  *reader = handle;
  return MPISERVE_OK;
}

/* The place may be another session's by the time of the read. */
int msi_read_service(const mpiserve_service *service, msi_handle **reader) {
  if (!service) return msi_null_argument("service");
  int index = msi_handles_owner(service, sizeof *service);
  if (index < 0 || !msi_handles_read(&msi_handles[index], MPISERVE_SIMULATION))
    return service_not_open();
  *reader = &msi_handles[index];
  return msi_handles_owns(index, service, sizeof *service) ? MPISERVE_OK : service_not_open();
}

static int another_is_in(const msi_handle *handle) {
  if (msi_fallback_runs(&msi_sessions[handle - msi_handles].client))
    return msi_error(MPISERVE_ESTATE, "a fallback must not call the session that calls it");
  return msi_error(MPISERVE_ESTATE,
                   "another thread is in a call of this session: threads use a session one at a "
                   "time; put a lock around the calls");
}

void msi_leave(msi_handle *const *turn) {
  if (*turn) msi_handles_leave(*turn);
}

int msi_enter(mpiserve_session *session, int role, msi_handle **turn) {
  msi_handle *handle = handle_of(session);
  int entered = handle ? msi_handles_enter(handle, role) : -1;
  if (entered > 0) {
    *turn = handle;
    return MPISERVE_OK;
  }
  int code = entered < 0 ? check_role(session, role) : MPISERVE_OK;
  return code ? code : another_is_in(handle); /* also: it has been opened since */
}

int msi_enter_serving(mpiserve_session *session, msi_handle **turn) {
  int code = msi_enter(session, MPISERVE_INFERENCE, turn);
  if (code || session->published) return code;
  return msi_error(MPISERVE_ESTATE, "rank %d has not published its service", session->world.rank);
}

/* The place may be another session's by the time of the turn. */
int msi_enter_service(const mpiserve_service *service, msi_handle **turn) {
  if (!service) return msi_null_argument("service");
  int index = msi_handles_owner(service, sizeof *service);
  int entered = index < 0 ? -1 : msi_handles_enter(&msi_handles[index], MPISERVE_SIMULATION);
  if (!entered) return another_is_in(&msi_handles[index]);
  if (entered < 0) return service_not_open();
  *turn = &msi_handles[index];
  return msi_handles_owns(index, service, sizeof *service) ? MPISERVE_OK : service_not_open();
}

int msi_check_timeout(double timeout) {
  if (timeout == timeout) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG,
                   "the time-out is not a number; MPISERVE_FOREVER waits without end");
}
