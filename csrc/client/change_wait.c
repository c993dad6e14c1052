#include "client/change_wait.h"

#include "base/error.h"
#include "client/call.h"
#include "client/change.h"
#include "client/waiting.h"

static const double LOOK_S = 1; /* between two looks whether the head is there */

static double left(int64_t deadline) {
  if (deadline == INT64_MAX) return MPISERVE_FOREVER;
  int64_t ns = deadline - msi_now();
  return ns > 0 ? (double)ns * 1e-9 : 0;
}

/* Every change but a load or a start happens all the same, or replicas would keep two versions. */
static void abandon(msi_client *client, msi_change *change) {
  msi_endpoint *endpoint = change->message.endpoint;
  change->message.abandoned = 1;
  int is_dropped = change->what == MPISERVE_LOAD || change->what == MPISERVE_START;
  if (change->sent || !is_dropped) return;
  msi_send_queue_remove(client, &change->message);
  msi_change_end(client, change);
  msi_call_progress(client, endpoint); /* the next message is first now */
}

/* A head that ends does not wait until a guest's change is done, and does not answer then. */
static int is_gone(msi_endpoint *endpoint) {
  int64_t entered_ns[MPISERVE_STATES];
  return !endpoint->stopped && !endpoint->lost && !msi_endpoint_states(endpoint, entered_ns) &&
         msi_state_of(entered_ns) == MPISERVE_GONE;
}

static int wait_while_there(msi_client *client, msi_change *change, int64_t deadline) {
  msi_endpoint *endpoint = change->message.endpoint;
  double timeout = left(deadline), seconds = timeout;
  while (seconds < 0 || seconds > LOOK_S) {
    int code = msi_waiting_for_reply(client, endpoint, &change->done, LOOK_S);
    if (change->done || code != MPISERVE_ETIMEOUT) return code;
    if (is_gone(endpoint))
      return msi_error(MPISERVE_ECLOSED, "every simulation rank has left the session");
    seconds = left(deadline);
  }
  int code = msi_waiting_for_reply(client, endpoint, &change->done, seconds);
  if (change->done || code != MPISERVE_ETIMEOUT) return code;
  return msi_error(code, "no reply from rank %d within %g s", endpoint->path.head, timeout);
}

int msi_change_wait(msi_client *client, msi_change *change, int64_t deadline) {
  int code = wait_while_there(client, change, deadline);
  if (!change->done) {
    abandon(client, change);
    return code;
  }
  code = msi_message_result(&change->message);
  msi_change_end(client, change);
  return code;
}

int msi_change_submit(msi_client *client, msi_endpoint *endpoint, int what, const char *version,
                      msi_change **change) {
  *change = msi_change_begin(client, endpoint, what, version);
  if (!*change) return msi_error(MPISERVE_ENOMEM, "no memory for a change");
  msi_send_queue_push(client, &(*change)->message);
  return msi_call_progress(client, endpoint);
}
