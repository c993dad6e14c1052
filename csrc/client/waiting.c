#include "client/waiting.h"

#include "base/error.h"
#include "client/call.h"

int msi_waiting_for_reply(msi_client *client, msi_endpoint *endpoint, const int *done,
                          double timeout) {
  int64_t deadline = msi_deadline(timeout);
  msi_wait wait = {0};
  int code = msi_call_progress(client, endpoint);
  while (!code && !*done) {
    if (msi_wait_pause(&wait, &client->backoff, NULL)) {
      if (msi_now() > deadline)
        return msi_error(MPISERVE_ETIMEOUT, "no reply from rank %d within %g s",
                         endpoint->path.head, timeout);
      code = msi_call_progress_all(client);
    }
    if (!code) code = msi_call_progress(client, endpoint);
  }
  return code;
}

static int is_busy(const msi_client *client, int at) {
  return client->endpoints[at].in_flight || client->send_queues[at].first;
}

static int is_idle(const msi_client *client) {
  for (int i = 0; i < client->n_endpoints; i++)
    if (is_busy(client, i)) return 0;
  return 1;
}

static int no_replies(const msi_client *client) {
  char text[MPISERVE_TEXT_SIZE] = "";
  for (int i = 0; i < client->n_endpoints; i++) {
    if (!is_busy(client, i)) continue;
    if (text[0]) msi_text_append(text, sizeof text, "; ");
    msi_endpoint_why(&client->endpoints[i], text, sizeof text);
  }
  return msi_error(MPISERVE_ETIMEOUT, "not all that this rank sent was answered in time: %s", text);
}

int msi_waiting_for_slot(msi_client *client, msi_endpoint *endpoint, int64_t deadline) {
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  while (!code && !msi_endpoint_can_send(endpoint)) {
    code = msi_call_progress(client, endpoint);
    if (code || !msi_wait_pause(&wait, &client->backoff, NULL)) continue;
    code = msi_now() > deadline ? no_replies(client) : msi_call_progress_all(client);
  }
  return code;
}

int msi_waiting_for_all(msi_client *client, int64_t deadline) {
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  while (!code && !is_idle(client)) {
    code = msi_call_progress_all(client);
    if (code || is_idle(client) || !msi_wait_pause(&wait, &client->backoff, NULL)) continue;
    if (msi_now() > deadline) code = no_replies(client);
  }
  return code;
}
