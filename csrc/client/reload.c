#include "client/reload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static int is_replica(const mpiserve_service *service, int head) {
  const mpiserve_description *d = &service->client->world->heads[head].description;
  return !d->error && !strcmp(d->name, service->name);
}

static double left(int64_t deadline) {
  if (deadline == INT64_MAX) return MPISERVE_FOREVER;
  int64_t ns = deadline - msi_now();
  return ns > 0 ? (double)ns * 1e-9 : 0;
}

/* The first failure is the one that is told, with its rank. */
static int note(int first, int code, const mpiserve_service *service, int rank, char *text) {
  if (!first && code)
    snprintf(text, MPISERVE_TEXT_SIZE, "service '%s' on rank %d: %s", service->name, rank,
             mpiserve_last_error());
  return first ? first : code;
}

static int take_answer(msi_client *client, mpiserve_request *request, double timeout) {
  if (!request->id) return MPISERVE_OK; /* it was not given */
  int code = msi_call_wait(client, request, timeout, NULL);
  if (request->id) msi_call_cancel(client, request);
  return code;
}

/* Asks all replicas, then waits for all: loading takes as long as one of them does. */
static int ask(const mpiserve_service *service, int what, const char *version, int64_t deadline,
               char *text) {
  msi_client *client = service->client;
  mpiserve_request *requests = calloc((size_t)client->n_endpoints, sizeof *requests);
  if (!requests) return msi_error(MPISERVE_ENOMEM, "no memory to ask the replicas");
  int code = MPISERVE_OK;
  for (int h = 0; h < client->n_endpoints; h++) {
    if (!is_replica(service, h)) continue;
    int failed = msi_call_change(client, &client->endpoints[h], what, version, &requests[h]);
    code = note(code, failed, service, client->endpoints[h].path.head, text);
  }
  for (int h = 0; h < client->n_endpoints; h++) {
    int failed = take_answer(client, &requests[h], left(deadline));
    code = note(code, failed, service, client->endpoints[h].path.head, text);
  }
  free(requests);
  return code;
}

int msi_reload(const mpiserve_service *service, const char *version, double timeout) {
  char text[MPISERVE_TEXT_SIZE];
  int64_t deadline = msi_deadline(timeout);
  int code = ask(service, MPISERVE_LOAD, version, deadline, text);
  if (!code) {
    code = ask(service, MPISERVE_SWAP, NULL, deadline, text);
    return code ? msi_error(code, "%s", text) : MPISERVE_OK;
  }
  char unwanted[MPISERVE_TEXT_SIZE];
  ask(service, MPISERVE_DROP, NULL, deadline, unwanted); /* who still loads does it later */
  return msi_error(code, "%s; the version before goes on", text);
}

int msi_unload(const mpiserve_service *service, double timeout) {
  char text[MPISERVE_TEXT_SIZE];
  int code = ask(service, MPISERVE_UNLOAD, NULL, msi_deadline(timeout), text);
  return code ? msi_error(code, "%s", text) : MPISERVE_OK;
}
