/* More reloads than a generation counts, in one thread that is both the head and its client. */
#include <string.h>

#include "check.h"
#include "head/reply.h"
#include "race.h"

enum { GENERATIONS = 65536 };

static msi_made_up made;

static int take_reply(msi_endpoint *endpoint) {
  int slot = msi_endpoint_reply(endpoint);
  CHECK(slot >= 0);
  msi_endpoint_release(endpoint, slot);
  return endpoint->path.slots[slot].reply.generation;
}

static void swap(msi_endpoint *endpoint) {
  mpiserve_batch batch;
  msi_endpoint_send(endpoint, MSI_CHANGE, 0, MPISERVE_SWAP, NULL, NULL);
  CHECK(msi_serving_next(&made.serving, 0, &batch) == MPISERVE_ECHANGE);
  CHECK(msi_serving_change_reply(&made.serving, 0, MPISERVE_OK, NULL) == MPISERVE_OK);
  take_reply(endpoint);
}

static int generation(msi_endpoint *endpoint) {
  double in = 1, out;
  uint64_t sequence;
  mpiserve_batch batch;
  msi_payload payload = {
      .rows = 1, .input = {-1}, .output = {-1}, .inputs = {&in}, .outputs = {&out}};
  msi_endpoint_infer(endpoint, MSI_INFER, &payload, NULL, &sequence);
  CHECK(msi_serving_next(&made.serving, 0, &batch) == MPISERVE_OK);
  CHECK(msi_reply_all(made.serving.brokers, batch.inputs) == MPISERVE_OK);
  return take_reply(endpoint);
}

int main(void) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.name = "swapped", .n_inputs = 1, .n_outputs = 1, .max_batch_rows = 1};
  d.inputs[0] = d.outputs[0] = spec;
  CHECK(made_up_open(&made, 1, 1, &d) == MPISERVE_OK);
  msi_endpoint endpoint = made_up_endpoint(&made, 0, 0);
  for (int i = 1; i <= GENERATIONS + 2 && !check_failures; i++) {
    if (i < 3 || i > GENERATIONS - 3) CHECK(generation(&endpoint) == i % GENERATIONS);
    swap(&endpoint);
  }
  made_up_close(&made);
  return check_result();
}
