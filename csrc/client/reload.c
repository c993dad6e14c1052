#include "client/reload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/call.h"
#include "client/change.h"
#include "client/waiting.h"

static int is_replica(const mpiserve_service *service, int head) {
  const mpiserve_description *d = &service->client->world->heads[head].description;
  return !d->error && !service->client->endpoints[head].lost && !strcmp(d->name, service->name);
}

static double left(int64_t deadline) {
  if (deadline == INT64_MAX) return MPISERVE_FOREVER;
  int64_t ns = deadline - msi_now();
  return ns > 0 ? (double)ns * 1e-9 : 0;
}

/* The caller learns the first failure, with its rank. */
static int note(int first, int code, const mpiserve_service *service, int rank, char *text) {
  if (!first && code)
    snprintf(text, MPISERVE_TEXT_SIZE, "service '%s' on rank %d: %s", service->name, rank,
             mpiserve_last_error());
  return first ? first : code;
}

/* Every change but a load happens all the same, or replicas would keep two versions. */
static void abandon(msi_client *client, msi_change *change) {
  msi_endpoint *endpoint = change->message.endpoint;
  change->message.abandoned = 1;
  if (change->sent || change->what != MPISERVE_LOAD) return;
  msi_send_queue_remove(client, &change->message);
  msi_change_end(client, change);
  msi_call_progress(client, endpoint); /* the next message is first now */
}

static int wait_for_reply(msi_client *client, msi_change *change, double timeout) {
  int code = msi_waiting_for_reply(client, change->message.endpoint, &change->done, timeout);
  if (!change->done) {
    abandon(client, change);
    return code;
  }
  code = msi_message_result(&change->message);
  msi_change_end(client, change);
  return code;
}

/* Sends a change to one replica, behind the requests that this rank submitted before. */
static int send_to(msi_client *client, msi_endpoint *endpoint, int what, const char *version,
                   msi_change **change) {
  *change = msi_change_begin(client, endpoint, what, version);
  if (!*change) return msi_error(MPISERVE_ENOMEM, "no memory for a change");
  msi_send_queue_push(client, &(*change)->message);
  return msi_call_progress(client, endpoint);
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
    int failed = send_to(client, &client->endpoints[h], what, version, &changes[h]);
    code = note(code, failed, service, client->endpoints[h].path.head, text);
  }
  for (int h = 0; h < client->n_endpoints; h++) {
    int failed = changes[h] ? wait_for_reply(client, changes[h], left(deadline)) : MPISERVE_OK;
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
