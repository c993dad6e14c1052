/* with_step: the transports of a session that is captured. The table of functions is another one,
 * so that other sessions pay nothing. */
#include <string.h>

#include "mpi/transport.h"

static msi_transport tables[MSI_TRANSPORTS];

/* Texts may take the whole slot; they are no requests. */
static int post(msi_path *path, uint64_t sequence, size_t bytes) {
  const msi_transport *plain = msi_transport_at(path->transport->number);
  msi_slot *slot = &path->slots[(sequence - 1) % MSI_SLOTS];
  if (bytes > MSI_STEP_AT) return plain->post(path, sequence, bytes);
  memcpy(slot->input + MSI_STEP_AT, &path->window->step, sizeof path->window->step);
  return plain->post(path, sequence, MSI_EAGER_BYTES);
}

/* Threads that open sessions at the same time write the same. */
const msi_transport *msi_transport_with_step(int number) {
  tables[number] = *msi_transport_at(number);
  tables[number].post = post;
  return &tables[number];
}
