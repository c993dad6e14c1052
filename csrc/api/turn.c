/* turn: checks that a session is open, that this rank has the role, and that no other thread is in
 * a call of it. */
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

/* -1 or more than there are: it is no session. */
static int place_of(const mpiserve_session *session) {
  uintptr_t at = (uintptr_t)session - (uintptr_t)msi_sessions;
  return at % sizeof *session || at >= sizeof msi_sessions ? -1 : (int)(at / sizeof *session);
}

int msi_check_session(const mpiserve_session *session) {
  if (!session) return msi_null_argument("session");
  int role = msi_handles_role(place_of(session));
  return role < 0 ? msi_not_open("the session is not open") : MPISERVE_OK;
}

static int service_not_open(void) { return msi_not_open("the session of the service is not open"); }

int msi_check_service(const mpiserve_service *service) {
  if (!service) return msi_null_argument("service");
  return msi_handles_owner(service, sizeof *service) < 0 ? service_not_open() : MPISERVE_OK;
}

int msi_take_turn(mpiserve_session *session, mpiserve_session **turn) {
  int entered = msi_handles_enter(place_of(session));
  if (entered < 0) return msi_not_open("the session is not open");
  if (!entered)
    return msi_error(MPISERVE_ESTATE,
                     "another thread is in a call of this session: threads use a session one at a "
                     "time; put a lock around the calls");
  *turn = session;
  return MPISERVE_OK;
}

void msi_leave(mpiserve_session *const *turn) {
  if (*turn) msi_handles_leave((int)(*turn - msi_sessions));
}

int msi_enter(mpiserve_session *session, int role, mpiserve_session **turn) {
  int code = msi_check_role(session, role);
  return code ? code : msi_take_turn(session, turn);
}

int msi_enter_service(const mpiserve_service *service, mpiserve_session **turn) {
  if (!service) return msi_null_argument("service");
  int place = msi_handles_owner(service, sizeof *service);
  return place < 0 ? service_not_open() : msi_take_turn(&msi_sessions[place], turn);
}

int msi_check_timeout(double timeout) {
  if (timeout == timeout) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG,
                   "the time-out is not a number; MPISERVE_FOREVER waits without end");
}

int msi_check_role(const mpiserve_session *session, int role) {
  if (!session) return msi_null_argument("session");
  int its = msi_handles_role(place_of(session));
  if (its < 0) return msi_not_open("the session is not open");
  if (its == role) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG, "this is for %s ranks, and rank %d is one of the others",
                   role == MPISERVE_SIMULATION ? "simulation" : "inference", session->world.rank);
}

int msi_enter_serving(mpiserve_session *session, mpiserve_session **turn) {
  int code = msi_check_role(session, MPISERVE_INFERENCE);
  if (!code && !session->published)
    return msi_error(MPISERVE_ESTATE, "rank %d has not published its service", session->world.rank);
  return code ? code : msi_take_turn(session, turn);
}
