/* Threads open and close sessions of their own, while another thread checks and enters sessions
 * that may be closed, or be another's by now: it reads a session only in a turn of its own. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "api/session.h"
#include "base/error.h"
#include "base/handles.h"
#include "check.h"

enum { OPENERS = 3, CHECKERS = 2, ROUNDS = 10000, SERVICES = 2, REPLICAS = 7, PUBLISHED = 5 };

static _Atomic(mpiserve_service *) seen; /* a service of a session that was open lately */
static _Atomic int left = OPENERS, wrong, refused, entered;
static int first_free; /* of the places for OPENERS sessions, side by side */

/* What is checked of a session, made without MPI. */
static mpiserve_session *open_one(int role) {
  int index = msi_handles_take();
  mpiserve_session *session = &msi_sessions[index];
  *session = (mpiserve_session){.world.role = role};
  session->published = role == MPISERVE_INFERENCE ? PUBLISHED : 0;
  session->client.n_services = role == MPISERVE_SIMULATION ? SERVICES : 0;
  session->client.services = calloc(SERVICES, sizeof *session->client.services);
  session->client.services[1].replicas = REPLICAS;
  size_t bytes = (size_t)session->client.n_services * sizeof *session->client.services;
  msi_handles_own(index, session->client.services, bytes);
  msi_handles_open(index, role, 0);
  return session;
}

/* The other thread may be in the session, but nothing else may keep its owner out. */
static int is_busy(int code) {
  int busy = code == MPISERVE_ESTATE && strstr(mpiserve_last_error(), "another thread");
  wrong += code && !busy;
  return busy;
}

/* As mpiserve_close() does. */
static void close_one(mpiserve_session *session) {
  msi_handle *turn = NULL;
  int index = (int)(session - msi_sessions);
  while (is_busy(msi_enter(session, MSI_ANY_ROLE, &turn))) continue;
  wrong += turn != &msi_handles[index];
  msi_handles_close(index);
  free(session->client.services);
  *session = (mpiserve_session){0};
  msi_handles_leave(turn);
  sched_yield(); /* the moment in which somebody might enter what is freed */
  msi_handles_give(index);
}

static void use_service(const mpiserve_session *session, const mpiserve_service *service) {
  MSI_TURN turn = NULL;
  MSI_READER reader = NULL;
  wrong += msi_read_service(service, &reader) != MPISERVE_OK;
  while (is_busy(msi_enter_service(service, &turn))) continue;
  wrong += turn != &msi_handles[session - msi_sessions];
}

static void *open_and_close(void *argument) {
  for (int i = 0; i < ROUNDS; i++) {
    int role = i % 2 ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
    mpiserve_session *session = open_one(role);
    if (role == MPISERVE_SIMULATION) atomic_store(&seen, &session->client.services[1]);
    if (role == MPISERVE_SIMULATION) use_service(session, &session->client.services[1]);
    close_one(session);
  }
  left--;
  return argument;
}

/* Counts how a check or an attempt to enter ended. */
static int count(int code) {
  wrong += code != MPISERVE_OK && code != MPISERVE_ESTATE && code != MPISERVE_EARG;
  refused += code == MPISERVE_ESTATE;
  entered += code == MPISERVE_OK;
  return code == MPISERVE_OK;
}

static void read_service(mpiserve_service *service) {
  MSI_READER reader = NULL;
  if (count(msi_read_service(service, &reader))) wrong += service->replicas != REPLICAS;
}

static void read_simulation(mpiserve_session *session) {
  MSI_READER reader = NULL;
  if (count(msi_read(session, MPISERVE_SIMULATION, &reader)))
    wrong +=
        session->client.n_services != SERVICES || session->client.services[1].replicas != REPLICAS;
}

static void enter_service(mpiserve_service *service) {
  MSI_TURN turn = NULL;
  if (count(msi_enter_service(service, &turn))) wrong += service->replicas != REPLICAS;
}

static void enter_simulation(mpiserve_session *session) {
  MSI_TURN turn = NULL;
  if (count(msi_enter(session, MPISERVE_SIMULATION, &turn)))
    wrong += session->world.role != MPISERVE_SIMULATION || session->client.n_services != SERVICES;
}

static void enter_serving(mpiserve_session *session) {
  MSI_TURN turn = NULL;
  if (count(msi_enter_serving(session, &turn)))
    wrong += session->world.role != MPISERVE_INFERENCE || session->published != PUBLISHED;
}

static void *use_stale(void *argument) {
  while (left) {
    mpiserve_service *service = atomic_load(&seen);
    if (service) read_service(service);
    if (service) enter_service(service);
    for (int i = 0; i < OPENERS; i++) {
      mpiserve_session *session = &msi_sessions[(first_free + i) % MPISERVE_MAX_SESSIONS];
      read_simulation(session);
      enter_simulation(session);
      enter_serving(session);
    }
  }
  return argument;
}

/* The handle of a session that was closed is not that of the next one. */
static void check_places_go_round(void) {
  int first = msi_handles_take();
  msi_handles_give(first);
  int second = msi_handles_take();
  CHECK(second != first);
  msi_handles_give(second);
}

int main(void) {
  pthread_t threads[OPENERS + CHECKERS];
  check_places_go_round();
  /* Few places are free, so that each is soon another session's. */
  for (int i = OPENERS; i < MPISERVE_MAX_SESSIONS; i++) first_free = msi_handles_take() + 1;
  for (int i = 0; i < OPENERS + CHECKERS; i++)
    pthread_create(&threads[i], NULL, i < OPENERS ? open_and_close : use_stale, NULL);
  for (int i = 0; i < OPENERS + CHECKERS; i++) pthread_join(threads[i], NULL);
  CHECK(!wrong && refused > 0 && entered > 0);
  msi_handle *reader = NULL;
  CHECK(msi_read_service(seen, &reader) == MPISERVE_ESTATE);
  return check_result();
}
