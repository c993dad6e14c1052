/* ticket_table: requests whose batch has ended and that are answered later, by ticket. No MPI
 * calls; used by one thread at a time. */
#ifndef MSI_TICKET_TABLE_H
#define MSI_TICKET_TABLE_H

#include "head/batch.h"
#include "mpiserve.h"

/* Of the batch that a request was in: when it was closed, and how large it was. */
typedef struct msi_origin {
  int64_t closed_ns;
  uint32_t rows, requests;
} msi_origin;

typedef struct msi_ticket {
  msi_entry entry; /* at 0: its own rows are what it is answered with */
  msi_origin origin;
  uint32_t generation; /* a ticket's id is generation << 32 | index + 1 */
  int taken;
  uint32_t next; /* free entries: the next one */
} msi_ticket;

/* Grows to the most requests that were ever held at a time. */
typedef struct msi_ticket_table {
  msi_ticket *entries;
  uint32_t n, capacity, used, idle; /* idle: the first free place among the used ones, or used */
} msi_ticket_table;

void msi_ticket_table_close(msi_ticket_table *table);

/* Makes room for so many more, so that msi_ticket_table_put() cannot fail. */
int msi_ticket_table_reserve(msi_ticket_table *table, uint32_t more);

/* Puts a request there; its ticket's id. */
uint64_t msi_ticket_table_put(msi_ticket_table *table, const msi_ticket *held);

/* The request of this ticket; NULL if that has ended. Valid until the next put. */
msi_ticket *msi_ticket_table_find(const msi_ticket_table *table, uint64_t id);

/* Any that is held; NULL if there is none. */
msi_ticket *msi_ticket_table_any(const msi_ticket_table *table);

/* Ends one: its ticket is void. */
void msi_ticket_table_drop(msi_ticket_table *table, msi_ticket *held);

#endif
