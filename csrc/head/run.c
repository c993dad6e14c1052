#include "head/run.h"

#include "base/error.h"
#include "head/answer.h"
#include "head/fit.h"
#include "head/reply.h"

/* ---- request by request ----------------------------------------------------------- */

/* The reply is begun first: over rma the last one may still be on its way from this slot. */
static int run_request(msi_broker *broker, const msi_entry *m, const msi_origin *origin) {
  const mpiserve_engine *engine = &broker->engine;
  const void *inputs[MPISERVE_MAX_TENSORS];
  void *outputs[MPISERVE_MAX_TENSORS];
  char text[MPISERVE_TEXT_SIZE];
  msi_slot *slot;
  int code = msi_inbox_reply_begin(&broker->inboxes[m->inbox], m->lane, m->sequence, &slot);
  if (code) return code;
  size_t bytes = msi_fit_find(&broker->inboxes[m->inbox], m, slot, inputs, outputs);
  text[0] = text[sizeof text - 1] = 0;
  if (engine->run(engine->state, m->rows, inputs, outputs, text, sizeof text - 1))
    return msi_broker_refuse(broker, m, MPISERVE_EMODEL, text);
  return msi_answer(broker, m, origin, slot, bytes, origin->closed_ns);
}

static int run_requests(msi_broker *broker) {
  msi_origin origin = msi_reply_origin(broker);
  int code = MPISERVE_OK;
  for (uint32_t i = 0; i < broker->assembly.n && !code; i++)
    code = run_request(broker, &broker->assembly.members[i], &origin);
  msi_broker_end_batch(broker);
  return code;
}

/* ---- as one ----------------------------------------------------------------------- */

/* MPI is the broker thread's while the engine runs, as it is while a caller's model does. */
static int run_rows(msi_broker *broker, int64_t begin, int64_t rows) {
  const mpiserve_engine *engine = &broker->engine;
  const mpiserve_batch *batch = &broker->assembly.batch;
  const msi_layout *layout = &broker->inboxes[0].layout;
  const void *inputs[MPISERVE_MAX_TENSORS];
  void *outputs[MPISERVE_MAX_TENSORS];
  char text[MPISERVE_TEXT_SIZE];
  for (int i = 0; i < layout->inputs.n; i++)
    inputs[i] = (const char *)batch->inputs[i] + (size_t)begin * layout->inputs.row_bytes[i];
  for (int i = 0; i < layout->outputs.n; i++)
    outputs[i] = (char *)batch->outputs[i] + (size_t)begin * layout->outputs.row_bytes[i];
  text[0] = text[sizeof text - 1] = 0;
  msi_progress_start(broker->progress);
  int failed = engine->run(engine->state, rows, inputs, outputs, text, sizeof text - 1);
  msi_progress_stop(broker->progress);
  return failed ? msi_error(MPISERVE_EMODEL, "%s", text) : MPISERVE_OK;
}

static int run_chunks(msi_broker *broker) {
  const mpiserve_batch *batch = &broker->assembly.batch;
  const void *const *outputs = (const void *const *)batch->outputs;
  int64_t chunk = broker->engine.chunk_rows, left;
  int whole = broker->policy.together || broker->description->overwrites;
  if (chunk < 1 || whole) chunk = batch->rows;
  for (int64_t begin = 0; (left = batch->rows - begin) > 0; begin += chunk) {
    int code = run_rows(broker, begin, left < chunk ? left : chunk);
    if (!code && left > chunk) code = msi_reply_rows(broker, begin + chunk, outputs);
    msi_progress_stop(broker->progress);
    if (code) return code;
  }
  return msi_reply_all(broker, outputs);
}

int msi_run_batch(msi_broker *broker) {
  int code = broker->engine.by_request ? run_requests(broker) : run_chunks(broker);
  msi_progress_stop(broker->progress); /* replies leave MPI to the thread if requests are held */
  if (!code) broker->counters.engine_batches++;
  return code;
}
