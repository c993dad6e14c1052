#include "head/control.h"

#include <string.h>

#include "base/error.h"

int msi_control_open(msi_control *control, msi_port *ports) {
  *control = (msi_control){.ports = ports, .generation = 1};
  return msi_queue_open(&control->waiting);
}

void msi_control_close(msi_control *control) { msi_queue_close(&control->waiting); }

int msi_control_push(msi_control *control, const msi_entry *entry) {
  if (entry->lease >= MPISERVE_LOAD && entry->lease <= MPISERVE_UNLOAD)
    return msi_queue_push(&control->waiting, *entry);
  return msi_port_reply(&control->ports[entry->port], entry->lane, entry->sequence, MPISERVE_EARG,
                        "a change of unknown kind");
}

int msi_control_news(msi_control *control) { return !control->told && (control->told = 1); }

int msi_control_pauses(const msi_control *control) {
  int what = msi_queue_at(&control->waiting, 0)->lease;
  return what == MPISERVE_SWAP || what == MPISERVE_UNLOAD;
}

static int none(void) { return msi_error(MPISERVE_ESTATE, "no client asks for a change"); }

int msi_control_get(const msi_control *control, mpiserve_control *order) {
  if (!control->waiting.n) return none();
  const msi_entry *first = msi_queue_at(&control->waiting, 0);
  const msi_port *port = &control->ports[first->port];
  const msi_slot *slot = msi_port_slot(port, first->lane, first->sequence);
  size_t bytes = first->rows; /* of the copy: the slot may have changed */
  *order = (mpiserve_control){.what = first->lease, .client = port->clients[first->lane]};
  memcpy(order->version, slot->input, bytes < MPISERVE_NAME_SIZE ? bytes : MPISERVE_NAME_SIZE - 1);
  return MPISERVE_OK;
}

int msi_control_reply(msi_control *control, int code, const char *text) {
  if (!control->waiting.n) return none();
  msi_entry first = msi_queue_pop(&control->waiting);
  control->told = 0;
  control->generation += first.lease == MPISERVE_SWAP && !code; /* 0 follows 65535 */
  return msi_port_reply(&control->ports[first.port], first.lane, first.sequence, code, text);
}
