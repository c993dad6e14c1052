/* Threads open and close sessions of their own, while another thread checks handles of sessions
 * that may be closed, or be another's by now: it reads no memory of a session. */
#include <stdlib.h>

#include "api/session.h"
#include "base/error.h"
#include "base/handles.h"
#include "check.h"

enum { OPENERS = 3, ROUNDS = 3000, SERVICES = 2 };

static _Atomic(mpiserve_service *) seen; /* a service of a session that was open lately */
static _Atomic int left = OPENERS, wrong, refused;

/* What is checked of a session, made without MPI. */
static mpiserve_session *open_one(void) {
  int place = msi_handles_take();
  mpiserve_session *session = &msi_sessions[place];
  *session = (mpiserve_session){.world.role = MPISERVE_SIMULATION};
  session->client.n_services = SERVICES;
  session->client.services = calloc(SERVICES, sizeof *session->client.services);
  msi_handles_own(place, session->client.services, SERVICES * sizeof *session->client.services);
  msi_handles_open(place, MPISERVE_SIMULATION);
  return session;
}

/* A close() waits for the turn of nobody, so the other thread must not hold one: it only asks. */
static void close_one(mpiserve_session *session) {
  mpiserve_service *services = session->client.services;
  *session = (mpiserve_session){0};
  msi_handles_give((int)(session - msi_sessions));
  free(services);
}

static void *open_and_close(void *argument) {
  for (int i = 0; i < ROUNDS; i++) {
    MSI_TURN turn = NULL;
    mpiserve_session *session = open_one();
    mpiserve_service *second = &session->client.services[1];
    atomic_store(&seen, second);
    wrong += msi_check_service(second) != MPISERVE_OK;
    wrong += msi_enter_service(second, &turn) != MPISERVE_OK ||
             turn != &msi_handles[session - msi_sessions];
    turn = NULL; /* which close() ends */
    close_one(session);
  }
  left--;
  return argument;
}

static void *check_stale(void *argument) {
  while (left) {
    mpiserve_service *service = atomic_load(&seen);
    int code = service ? msi_check_service(service) : MPISERVE_OK;
    wrong += code != MPISERVE_OK && code != MPISERVE_ESTATE;
    refused += code == MPISERVE_ESTATE;
    for (int i = 0; i < 2 * OPENERS; i++) {
      code = msi_check_role(&msi_sessions[i], MPISERVE_SIMULATION);
      wrong += code != MPISERVE_OK && code != MPISERVE_ESTATE;
    }
  }
  return argument;
}

int main(void) {
  pthread_t threads[OPENERS + 1];
  pthread_create(&threads[OPENERS], NULL, check_stale, NULL);
  for (int i = 0; i < OPENERS; i++) pthread_create(&threads[i], NULL, open_and_close, NULL);
  for (int i = 0; i <= OPENERS; i++) pthread_join(threads[i], NULL);
  CHECK(!wrong && refused > 0);
  CHECK(msi_check_service(seen) == MPISERVE_ESTATE);
  return check_result();
}
