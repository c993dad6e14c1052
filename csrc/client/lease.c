#include "client/lease.h"

void msi_lease_hold(msi_link *link, msi_place *place, int lease) {
  place->lease = lease;
  link->leases[lease].users++;
}

static void give_up(msi_link *link, msi_lease *lease) {
  link->stale += !lease->stale;
  lease->stale = 1;
}

void msi_lease_let_go(msi_link *link, msi_place *place) {
  if (place->lease < 0) return;
  msi_lease *lease = &link->leases[place->lease];
  place->lease = -1;
  if (--lease->users == 0 && lease->once) give_up(link, lease);
}

void msi_lease_end(msi_link *link, int lease) {
  if (link->leases[lease].users)
    link->leases[lease].once = 1;
  else
    give_up(link, &link->leases[lease]);
}

void msi_lease_place(msi_link *link, msi_cargo *cargo) {
  cargo->input = cargo->output = (msi_place){.lease = -1};
  if (msi_link_find_place(link, 0, cargo->rows, cargo->inputs, &cargo->input))
    msi_lease_hold(link, &cargo->input, cargo->input.lease);
  if (msi_link_find_place(link, 1, cargo->rows, cargo->outputs, &cargo->output))
    msi_lease_hold(link, &cargo->output, cargo->output.lease);
}

/* Sides that are neither in place nor ride in the slot share one lease. */
int msi_lease_wanted(const msi_link *link, const msi_cargo *cargo) {
  return (cargo->input.lease < 0 && !msi_side_eager(&link->layout.inputs, cargo->rows)) ||
         (cargo->output.lease < 0 && !msi_side_eager(&link->layout.outputs, cargo->rows));
}

void msi_lease_hold_for_both(msi_link *link, msi_cargo *cargo, int lease) {
  if (cargo->input.lease < 0 && !msi_side_eager(&link->layout.inputs, cargo->rows))
    msi_lease_hold(link, &cargo->input, lease);
  if (cargo->output.lease < 0 && !msi_side_eager(&link->layout.outputs, cargo->rows))
    msi_lease_hold(link, &cargo->output, lease);
}

/* Sizes that repeat get exactly their rows, so that neighbours touch; sizes that
 * vary get some to spare, so that the next larger one need not ask again. */
int msi_lease_ask(msi_link *link, msi_cargo *cargo, int at, void *owner) {
  int64_t rows = cargo->rows + (link->leases[at].renewed ? cargo->rows / 4 : 0);
  int64_t limit = link->layout.max_rows;
  msi_lease_hold_for_both(link, cargo, at);
  return msi_link_send(link, MSI_LEASE, rows < limit ? rows : limit, at, NULL, owner);
}

/* May the link ask for rows? Not while it has some that others may be waiting for:
 * the question may keep the slot that giving them back needs. */
int msi_lease_may_ask(const msi_link *link) {
  for (int i = 0; i < MSI_SLOTS; i++)
    if (link->leases[i].once) return 0;
  return 1;
}

int msi_lease_give_back(msi_link *link) {
  int code = MPISERVE_OK;
  for (int i = 0; link->stale && i < MSI_LEASES && !code; i++) {
    if (!link->leases[i].stale || !msi_link_free(link)) continue;
    link->leases[i] = (msi_lease){0};
    link->stale--;
    code = msi_link_send(link, MSI_LEASE, 0, i, NULL, NULL);
  }
  return code;
}
