/* fit: where the rows of a request lie: in its slot, or in rows that are leased to its lane.
 * Nothing that the request says is trusted. */
#ifndef MSI_FIT_H
#define MSI_FIT_H

#include "head/batch.h"
#include "head/inbox.h"

/* The same of one side. */
static inline int msi_fit_side(const msi_inbox *inbox, const msi_entry *entry, const msi_side *side,
                               int32_t lease, uint32_t row, uint32_t *begin) {
  *begin = MSI_IN_SLOT;
  if (lease < 0) return msi_side_eager(side, entry->rows);
  if (lease >= MSI_LEASES) return 0;
  msi_range range = inbox->lanes[entry->lane].leases[lease];
  *begin = range.begin + row;
  return row <= range.rows && entry->rows <= range.rows - row;
}

/* Finds the rows of a request of at least 1 and at most so many; 0: they do not lie there. */
static inline __attribute__((always_inline)) int
msi_fit(const msi_inbox *inbox, msi_entry *entry, const msi_request_header *request, int64_t most) {
  const msi_layout *layout = &inbox->layout;
  if (entry->rows < 1 || entry->rows > most) return 0;
  return msi_fit_side(inbox, entry, &layout->inputs, request->lease, request->row,
                      &entry->input_row) &&
         msi_fit_side(inbox, entry, &layout->outputs, request->output_lease, request->output_row,
                      &entry->output_row);
}

/* Where the rows of input i lie of a request that fits: packed, in its slot, or in leased rows. */
static inline const uint8_t *msi_fit_input(const msi_inbox *inbox, const msi_entry *entry, int i,
                                           const uint8_t *packed) {
  return entry->input_row == MSI_IN_SLOT ? packed : msi_inbox_input(inbox, i, entry->input_row);
}

/* Finds where all of its rows lie, and where its client looks for results. Tells how many bytes of
 * its slot these take. */
size_t msi_fit_find(const msi_inbox *inbox, const msi_entry *entry, msi_slot *slot,
                    const void **inputs, void **outputs);

#endif
