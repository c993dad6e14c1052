#include "head/leave.h"

#include "head/loss.h"
#include "mpi/failure.h"

static const char UNSAID[] = "it had no slot to say why, as this rank had answered nothing";

/* ---- marks ------------------------------------------------------------------------------ */

/* Requests that were rung for and not taken. Pairs with the client's release, as in the inbox. */
static uint8_t untaken(const msi_inbox *inbox, uint32_t lane) {
  const uint8_t *at = inbox->memory + inbox->layout.doorbells_at + lane;
  uint8_t doorbell = atomic_load_explicit((const _Atomic uint8_t *)at, memory_order_acquire);
  return (uint8_t)(doorbell - (uint8_t)inbox->lanes[lane].taken);
}

static uint32_t marks_of(const msi_inbox *inbox, uint32_t lane) {
  uint64_t last = inbox->lanes[lane].taken;
  if (!last || inbox->lanes[lane].gone) return 0;
  uint32_t marks = msi_slot_marks(msi_inbox_slot(inbox, lane, last));
  /* The client marks what it rang for last; while that was not taken, the slot is another one's. */
  return marks > MSI_CANCELLED && !untaken(inbox, lane) ? marks : 0;
}

static int obey(msi_broker *broker, msi_inbox *inbox, uint32_t lane, uint32_t marks) {
  int code = MPISERVE_OK;
  if (marks & MSI_HAS_FAILED && broker->failed_rank < 0)
    code = msi_broker_fail(broker, inbox->clients[lane], UNSAID, sizeof UNSAID - 1);
  return !code && marks & MSI_HAS_LEFT ? msi_loss_of_leaver(broker, inbox, lane) : code;
}

int msi_leave_look(msi_broker *broker) {
  int code = MPISERVE_OK;
  for (int t = 0; t < MSI_TRANSPORTS; t++) {
    msi_inbox *inbox = &broker->inboxes[t];
    for (uint32_t lane = 0; lane < inbox->layout.lanes && !code; lane++) {
      uint32_t marks = marks_of(inbox, lane);
      if (marks) code = obey(broker, inbox, lane, marks);
    }
  }
  return code;
}

/* ---- before they are taken ---------------------------------------------------------------- */

static int kind_of(const msi_slot *slot) {
  return *(const volatile uint8_t *)&slot->request.kind; /* it may change at any time */
}

static int asks_for(const msi_inbox *inbox, uint32_t lane, int kind, uint32_t mark) {
  uint64_t taken = inbox->lanes[lane].taken;
  uint8_t n = untaken(inbox, lane);
  if (n > MSI_SLOTS) n = MSI_SLOTS;
  for (uint8_t i = 1; i <= n; i++)
    if (kind_of(msi_inbox_slot(inbox, lane, taken + i)) == kind) return 1;
  return taken + n && (msi_slot_marks(msi_inbox_slot(inbox, lane, taken + n)) & mark);
}

static int has_left(const msi_inbox *inbox, uint32_t lane) {
  return inbox->lanes[lane].gone ||
         msi_failure_is_dead(inbox->window->world, inbox->clients[lane]) ||
         asks_for(inbox, lane, MSI_LEAVE, MSI_HAS_LEFT);
}

int msi_leave_is_wanted(const msi_broker *broker) {
  uint32_t waiting = 0;
  if (broker->failed_rank >= 0) return 0;
  for (int t = 0; t < MSI_TRANSPORTS; t++) {
    const msi_inbox *inbox = &broker->inboxes[t];
    for (uint32_t lane = 0; lane < inbox->layout.lanes; lane++) {
      if (asks_for(inbox, lane, MSI_FAIL, MSI_HAS_FAILED)) return 0;
      waiting += !inbox->lanes[lane].guest && !has_left(inbox, lane);
    }
  }
  return waiting > 0;
}
