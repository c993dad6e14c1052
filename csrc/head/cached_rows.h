/* cached_rows: the batches of a service that keeps answers: the rows that the model gets, and what
 * is kept of its results.
 *
 * The keys of the rows of a batch are made of this rank's own copy of them, which the model gets,
 * before it runs: what a client or a model writes to later changes no key. */
#ifndef MSI_CACHED_ROWS_H
#define MSI_CACHED_ROWS_H

#include "head/broker.h"
#include "head/cache.h"

enum { MSI_KEPT_BITS = 64 }; /* of a word */

typedef struct msi_cached {
  msi_cache cache;
  msi_broker *broker;
  int64_t *answered;              /* requests that the caches of this rank have answered */
  int is_off;                     /* rows belong together, as a version since has them */
  int has_news;                   /* rows were kept since the queue was looked through */
  uint32_t *found;                /* entries of the rows of a request */
  uint8_t *keys;                  /* of the rows of the batch that is open; */
  uint64_t *hashes;               /* of these */
  size_t words;                   /* that hold a bit for each row of a request: */
  uint64_t *kept[MSI_TRANSPORTS]; /* by lane and slot: it is kept, and where its client looks */
} msi_cached;

/* As msi_assembly_lay_out() and msi_assembly_scatter(). `rows` of a member are then those that the
 * model gets, at least one. */
void msi_cached_lay_out(msi_assembly *assembly);
size_t msi_cached_scatter(msi_assembly *assembly, const msi_entry *member, msi_slot *slot,
                          const void *const *outputs);

/* The next rows of a request, from *begin on, that the model has answered: their number, or 0. */
uint32_t msi_cached_next(const msi_assembly *assembly, const msi_entry *entry, uint32_t *begin);

/* How many rows the request of a member or ticket has. */
uint32_t msi_cached_rows(const msi_assembly *assembly, const msi_entry *entry);

/* Counts rows that have been answered, and how many of these were kept. */
void msi_cached_count(msi_cached *cached, uint32_t rows, uint32_t kept);

#endif
