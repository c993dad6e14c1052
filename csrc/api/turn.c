/* turn: may this call use the session: is it open, of this role, and no other thread's now? */
#include "api/session.h"
#include "base/error.h"
#include "base/handles.h"

int msi_null_argument(const char *name) { return msi_error(MPISERVE_EARG, "%s is NULL", name); }

int msi_not_open(const char *what) {
  if (msi_handles_forked())
    return msi_error(MPISERVE_ESTATE,
                     "this process was forked from the one that opened the session, and only that "
                     "one can use it: let workers send their work there, or give them ranks");
  return msi_error(MPISERVE_ESTATE, "%s: it was closed, or never opened", what);
}

int msi_check_session(const mpiserve_session *session) {
  if (!session) return msi_null_argument("session");
  return msi_handles_has(session) ? MPISERVE_OK : msi_not_open("the session is not open");
}

/* Services lie in an array of their session. */
static int owns(const mpiserve_session *session, const mpiserve_service *service) {
  if (session->world.role != MPISERVE_SIMULATION) return 0;
  uintptr_t first = (uintptr_t)session->client.services, at = (uintptr_t)service;
  size_t bytes = (size_t)session->client.n_services * sizeof *service;
  return at >= first && at - first < bytes && (at - first) % sizeof *service == 0;
}

/* The session of a service; NULL if it is not open. */
static mpiserve_session *session_of(const mpiserve_service *service) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++) {
    mpiserve_session *session = msi_handles_at(i);
    if (session && owns(session, service)) return session;
  }
  return NULL;
}

static int service_not_open(void) { return msi_not_open("the session of the service is not open"); }

int msi_check_service(const mpiserve_service *service) {
  if (!service) return msi_null_argument("service");
  return session_of(service) ? MPISERVE_OK : service_not_open();
}

/* Acquire and release: a thread sees what the one before it did with the session. */
int msi_take_turn(mpiserve_session *session, mpiserve_session **turn) {
  if (atomic_exchange_explicit(&session->entered, 1, memory_order_acquire))
    return msi_error(MPISERVE_ESTATE,
                     "another thread is in a call of this session: threads use a session one at a "
                     "time; put a lock around the calls");
  *turn = session;
  return MPISERVE_OK;
}

void msi_leave(mpiserve_session *const *turn) {
  if (*turn) atomic_store_explicit(&(*turn)->entered, 0, memory_order_release);
}

int msi_enter(mpiserve_session *session, int role, mpiserve_session **turn) {
  int code = msi_check_role(session, role);
  return code ? code : msi_take_turn(session, turn);
}

int msi_enter_service(const mpiserve_service *service, mpiserve_session **turn) {
  if (!service) return msi_null_argument("service");
  mpiserve_session *session = session_of(service);
  return session ? msi_take_turn(session, turn) : service_not_open();
}

int msi_check_timeout(double timeout) {
  if (timeout == timeout) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG,
                   "the time-out is not a number; MPISERVE_FOREVER waits without end");
}

int msi_check_role(const mpiserve_session *session, int role) {
  int code = msi_check_session(session);
  if (code) return code;
  if (session->world.role == role) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG, "this is for %s ranks, and rank %d is one of the others",
                   role == MPISERVE_SIMULATION ? "simulation" : "inference", session->world.rank);
}

int msi_enter_serving(mpiserve_session *session, mpiserve_session **turn) {
  int code = msi_check_role(session, MPISERVE_INFERENCE);
  if (!code && !session->published)
    return msi_error(MPISERVE_ESTATE, "rank %d has not published its service", session->world.rank);
  return code ? code : msi_take_turn(session, turn);
}
