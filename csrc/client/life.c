#define _GNU_SOURCE
#include "client/life.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/error.h"

/* States by how well they serve, the best first. */
static const int BY_USE[] = {MPISERVE_READY,      MPISERVE_BUSY,    MPISERVE_SUSPENDED,
                             MPISERVE_RESTARTING, MPISERVE_LOADING, MPISERVE_LAUNCHED,
                             MPISERVE_FAILED,     MPISERVE_GONE};

static int place_of(int state) {
  int place = 0;
  while (BY_USE[place] != state) place++;
  return place;
}

/* Of a replica with several ranks, the others publish an error with this code. */
static int is_replica(const msi_head *head, const char *name) {
  return !strcmp(head->description.name, name) && head->description.error != MPISERVE_ESTATE;
}

/* What a dead head has written stays readable on its node. From another one it is gone. */
static int read_times(msi_endpoint *endpoint, int64_t *entered_ns) {
  int same_node = endpoint->path.transport->same_node;
  if (endpoint->lost && !same_node) return MPISERVE_EPEER;
  if (endpoint->stopped && !same_node) return MPISERVE_ETIMEOUT;
  return msi_endpoint_states(endpoint, entered_ns);
}

static int read_state(msi_client *client, int h, mpiserve_replica_state *state) {
  const msi_head *head = &client->world->heads[h];
  msi_endpoint *endpoint = &client->endpoints[h];
  *state = (mpiserve_replica_state){.replica = head->description.replica, .rank = head->rank};
  int code = read_times(endpoint, state->entered_ns);
  state->state = msi_state_of(state->entered_ns);
  if (endpoint->stopped || code == MPISERVE_ETIMEOUT) state->state = MPISERVE_SUSPENDED;
  if (endpoint->lost || code == MPISERVE_EPEER) state->state = MPISERVE_GONE;
  return code == MPISERVE_EPEER || code == MPISERVE_ETIMEOUT ? MPISERVE_OK : code;
}

int msi_life_get(msi_client *client, const char *name, int n, mpiserve_replica_state *state) {
  int found = 0;
  mpiserve_replica_state one;
  for (int h = 0; h < client->n_endpoints; h++) {
    if (!is_replica(&client->world->heads[h], name) || (found++ != n && n >= 0)) continue;
    int code = read_state(client, h, &one);
    if (code) return code;
    if (n >= 0 || found == 1 || place_of(one.state) < place_of(state->state)) *state = one;
    if (n >= 0) return MPISERVE_OK;
  }
  if (n < 0 && found) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG, "service '%s' has %d replicas, and none with number %d", name,
                   found, n);
}

/* ---- waiting ---------------------------------------------------------------------------- */

static void write_since(const mpiserve_replica_state *state, char *text) {
  time_t seconds = (time_t)(state->entered_ns[state->state] / 1000000000);
  struct tm local;
  localtime_r(&seconds, &local);
  strftime(text, MSI_CLOCK_SIZE, "%Y-%m-%d %H:%M:%S", &local);
}

int msi_life_since(msi_client *client, int head, char *text) {
  mpiserve_replica_state state;
  int code = read_state(client, head, &state);
  if (!code) write_since(&state, text);
  return code;
}

static int none_left(const char *name, const mpiserve_replica_state *best) {
  char since[MSI_CLOCK_SIZE];
  write_since(best, since);
  return msi_error(MPISERVE_EMODEL,
                   "service '%s' will not be ready: replica %d on rank %d %s since %s, and no "
                   "other one serves",
                   name, best->replica, best->rank,
                   best->state == MPISERVE_GONE ? "is gone" : "has failed", since);
}

static int is_ready(const mpiserve_replica_state *best) {
  return best->state == MPISERVE_READY || best->state == MPISERVE_BUSY;
}

/* A head that changes its state wakes nobody: the wait naps. */
int msi_life_wait(msi_client *client, const char *name, double timeout) {
  int64_t deadline = msi_deadline(timeout);
  mpiserve_replica_state best = {0}; /* gcc 11 does not see that it is written */
  msi_wait wait = {0};
  int code;
  while (!(code = msi_life_get(client, name, -1, &best)) && !is_ready(&best)) {
    if (place_of(best.state) >= place_of(MPISERVE_FAILED)) return none_left(name, &best);
    if (!msi_wait_pause(&wait, &client->backoff, NULL)) continue;
    if (msi_now() > deadline)
      return msi_error(MPISERVE_ETIMEOUT, "service '%s' was not ready within %g s", name, timeout);
    code = msi_call_progress_all(client);
    if (code) return code;
  }
  return code;
}
