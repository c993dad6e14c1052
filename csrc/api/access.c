/* access: checks that a session is open, that this rank has the role, and that no other thread is
 * in a call of it. */
#include "api/session.h"
#include "base/error.h"
#include "base/handles.h"

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

static int role_of(const mpiserve_session *session) {
  msi_handle *handle = handle_of(session);
  return handle ? msi_handles_role(handle) : -1;
}

int msi_check_session(const mpiserve_session *session) {
  if (!session) return msi_null_argument("session");
  return role_of(session) < 0 ? msi_not_open("the session is not open") : MPISERVE_OK;
}

static int service_not_open(void) { return msi_not_open("the session of the service is not open"); }

int msi_check_service(const mpiserve_service *service) {
  if (!service) return msi_null_argument("service");
  return msi_handles_owner(service, sizeof *service) < 0 ? service_not_open() : MPISERVE_OK;
}

static int not_entered(int entered) {
  if (entered < 0) return msi_not_open("the session is not open");
  return msi_error(MPISERVE_ESTATE,
                   "another thread is in a call of this session: threads use a session one at a "
                   "time; put a lock around the calls");
}

static inline int take_turn(msi_handle *handle, msi_handle **turn) {
  int entered = msi_handles_enter(handle);
  if (entered <= 0) return not_entered(entered);
  *turn = handle;
  return MPISERVE_OK;
}

int msi_take_turn(mpiserve_session *session, msi_handle **turn) {
  return take_turn(handle_of(session), turn);
}

void msi_leave(msi_handle *const *turn) {
  if (*turn) msi_handles_leave(*turn);
}

int msi_enter(mpiserve_session *session, int role, msi_handle **turn) {
  msi_handle *handle = handle_of(session);
  int is_right = handle && msi_handles_role(handle) == role;
  int code = is_right ? MPISERVE_OK : msi_check_role(session, role);
  return code ? code : take_turn(handle, turn);
}

int msi_enter_service(const mpiserve_service *service, msi_handle **turn) {
  if (!service) return msi_null_argument("service");
  int place = msi_handles_owner(service, sizeof *service);
  return place < 0 ? service_not_open() : take_turn(&msi_handles[place], turn);
}

int msi_check_timeout(double timeout) {
  if (timeout == timeout) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG,
                   "the time-out is not a number; MPISERVE_FOREVER waits without end");
}

int msi_check_role(const mpiserve_session *session, int role) {
  if (!session) return msi_null_argument("session");
  int its = role_of(session);
  if (its < 0) return msi_not_open("the session is not open");
  if (its == role) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG, "this is for %s ranks, and rank %d is one of the others",
                   role == MPISERVE_SIMULATION ? "simulation" : "inference", session->world.rank);
}

int msi_enter_serving(mpiserve_session *session, msi_handle **turn) {
  int code = msi_check_role(session, MPISERVE_INFERENCE);
  if (!code && !session->published)
    return msi_error(MPISERVE_ESTATE, "rank %d has not published its service", session->world.rank);
  return code ? code : msi_take_turn(session, turn);
}
