#include "head/reply.h"

#include "base/error.h"
#include "head/answer.h"

static int no_batch(void) { return msi_error(MPISERVE_ESTATE, "there is no batch to answer"); }

int msi_reply_clients(const msi_broker *broker, int32_t *clients) {
  if (!broker->open) return no_batch();
  for (uint32_t i = 0; i < broker->assembly.n; i++) {
    const msi_entry *m = &broker->assembly.members[i];
    for (uint32_t row = 0; row < m->rows; row++)
      clients[m->at + row] = broker->inboxes[m->inbox].clients[m->lane];
  }
  return MPISERVE_OK;
}

int msi_reply_member(msi_broker *broker, const msi_entry *m, const msi_origin *origin,
                     const void *const *outputs, int64_t now) {
  msi_slot *slot;
  int code = msi_inbox_reply_begin(&broker->inboxes[m->inbox], m->lane, m->sequence, &slot);
  if (code) return code;
  size_t bytes = msi_assembly_scatter(&broker->assembly, m, slot, outputs);
  return msi_answer(broker, m, origin, slot, bytes, now);
}

msi_origin msi_reply_origin(const msi_broker *broker) {
  return (msi_origin){.closed_ns = broker->closed_ns,
                      .rows = (uint32_t)broker->assembly.batch.rows,
                      .requests = broker->assembly.n};
}

/* Answers the members whose rows are among the first ones. */
static int reply_within(msi_broker *broker, int64_t rows, const void *const *outputs) {
  int64_t now = msi_now();
  msi_origin origin = msi_reply_origin(broker);
  int code = MPISERVE_OK;
  for (uint32_t i = 0; i < broker->assembly.n && !code; i++) {
    msi_entry *m = &broker->assembly.members[i];
    if (m->answered || (int64_t)m->at + m->rows > rows) continue;
    code = msi_reply_member(broker, m, &origin, outputs, now);
    m->answered = 1;
  }
  return code;
}

int msi_reply_rows(msi_broker *broker, int64_t rows, const void *const *outputs) {
  if (!broker->open) return no_batch();
  msi_progress_stop(broker->progress);
  int code = reply_within(broker, rows, outputs);
  msi_progress_start(broker->progress);
  return code;
}

int msi_reply_all(msi_broker *broker, const void *const *outputs) {
  if (!broker->open) return no_batch();
  msi_progress_stop(broker->progress);
  int code = reply_within(broker, broker->assembly.batch.rows, outputs);
  msi_broker_end_batch(broker);
  return code;
}

int msi_reply_fail(msi_broker *broker, int code, const char *text) {
  if (!broker->open) return no_batch();
  msi_progress_stop(broker->progress);
  int failed = MPISERVE_OK;
  for (uint32_t i = 0; i < broker->assembly.n && !failed; i++)
    if (!broker->assembly.members[i].answered)
      failed = msi_broker_refuse(broker, &broker->assembly.members[i], code, text);
  msi_broker_end_batch(broker);
  return failed;
}
