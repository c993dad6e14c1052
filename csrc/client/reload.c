#include "client/reload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/change_wait.h"

static int is_replica(const mpiserve_service *service, int head) {
  const mpiserve_description *d = &service->client->world->heads[head].description;
  return !d->error && !service->client->endpoints[head].lost && !strcmp(d->name, service->name);
}

/* The caller learns the first failure, with its rank. */
static int note(int first, int code, const mpiserve_service *service, int rank, char *text) {
  if (!first && code)
    snprintf(text, MPISERVE_TEXT_SIZE, "service '%s' on rank %d: %s", service->name, rank,
             mpiserve_last_error());
  return first ? first : code;
}

/* Sends to all replicas, then waits for all, so that they load at the same time. */
static int send_all(const mpiserve_service *service, int what, const char *version,
                    int64_t deadline, char *text) {
  msi_client *client = service->client;
  msi_change **changes = calloc((size_t)client->n_endpoints, sizeof *changes);
  if (!changes) return msi_error(MPISERVE_ENOMEM, "no memory to ask the replicas");
  int code = MPISERVE_OK;
  for (int h = 0; h < client->n_endpoints; h++) {
    if (!is_replica(service, h)) continue;
    int failed = msi_change_submit(client, &client->endpoints[h], what, version, &changes[h]);
    code = note(code, failed, service, client->endpoints[h].path.head, text);
  }
  for (int h = 0; h < client->n_endpoints; h++) {
    int failed = changes[h] ? msi_change_wait(client, changes[h], deadline) : MPISERVE_OK;
    code = note(code, failed, service, client->endpoints[h].path.head, text);
  }
  free(changes);
  return code;
}

int msi_reload(const mpiserve_service *service, const char *version, double timeout) {
  char text[MPISERVE_TEXT_SIZE];
  int64_t deadline = msi_deadline(timeout);
  int code = send_all(service, MPISERVE_LOAD, version, deadline, text);
  if (!code) {
    code = send_all(service, MPISERVE_SWAP, NULL, deadline, text);
    return code ? msi_error(code, "%s", text) : MPISERVE_OK;
  }
  char unwanted[MPISERVE_TEXT_SIZE];
  send_all(service, MPISERVE_DROP, NULL, deadline,
           unwanted); /* a replica that still loads does it later */
  return msi_error(code, "%s; the version before goes on", text);
}

int msi_unload(const mpiserve_service *service, double timeout) {
  char text[MPISERVE_TEXT_SIZE];
  int code = send_all(service, MPISERVE_UNLOAD, NULL, msi_deadline(timeout), text);
  return code ? msi_error(code, "%s", text) : MPISERVE_OK;
}
