#include "client/change_wait.h"

#include "base/error.h"
#include "client/call.h"
#include "client/change.h"
#include "client/waiting.h"

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

int msi_change_wait(msi_client *client, msi_change *change, int64_t deadline) {
  int code = msi_waiting_for_reply(client, change->message.endpoint, &change->done, left(deadline));
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
