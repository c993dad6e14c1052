/* held: requests whose batch is over and that are still to be answered, by ticket. No MPI
 * calls; used by one thread at a time. */
#ifndef MSI_HELD_H
#define MSI_HELD_H

#include "head/batch.h"
#include "mpiserve.h"

/* Of the batch that a request was in: when it was closed, and how large it was. */
typedef struct msi_origin {
  int64_t closed_ns;
  uint32_t rows, requests;
} msi_origin;

typedef struct msi_held {
  msi_entry entry; /* at 0: its own rows are what it is answered with */
  msi_origin origin;
  uint32_t generation; /* a ticket's id is generation << 32 | place + 1 */
  int taken;
  uint32_t next; /* free places: the next one */
} msi_held;

/* Grows to the most requests that were ever held at a time. */
typedef struct msi_shelf {
  msi_held *places;
  uint32_t n, capacity, used, idle; /* idle: the first free place among the used ones, or used */
} msi_shelf;

void msi_shelf_close(msi_shelf *shelf);

/* Makes room for so many more, so that msi_shelf_put() cannot fail. */
int msi_shelf_reserve(msi_shelf *shelf, uint32_t more);

/* Puts a request there; its ticket's id. */
uint64_t msi_shelf_put(msi_shelf *shelf, const msi_held *held);

/* Who has this ticket; NULL if that has ended. Valid until the next put. */
msi_held *msi_shelf_find(const msi_shelf *shelf, uint64_t id);

/* Any that is held; NULL if there is none. */
msi_held *msi_shelf_any(const msi_shelf *shelf);

/* Ends one: its ticket is void. */
void msi_shelf_drop(msi_shelf *shelf, msi_held *held);

#endif
