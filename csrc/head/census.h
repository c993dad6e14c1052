/* census: how many clients can ask a service, and how many of these have asked, so that a batch
 * waits for nobody who does not come. A lane counts from its first request, or when it attaches,
 * until it departs to another replica, misses several batches, or leaves. The lane of a gateway
 * never counts. No MPI calls. */
#ifndef MSI_CENSUS_H
#define MSI_CENSUS_H

#include "head/inbox.h"

typedef struct msi_census {
  uint32_t able;  /* lanes that count */
  uint32_t asked; /* lanes with a request in the queue, or that wait for rows */
  int suspended;  /* the service is, on this rank: nobody asks, so nobody counts by attaching */
} msi_census;

/* A lane counts; it counts if the service is not suspended; it counts no longer. */
void msi_census_join(msi_census *census, msi_lane *lane);
void msi_census_attach(msi_census *census, msi_lane *lane);
void msi_census_uncount(msi_census *census, msi_lane *lane);

/* A request of the lane begins to wait, or waits no longer. */
void msi_census_queue(msi_census *census, msi_lane *lane);
void msi_census_unqueue(msi_census *census, msi_lane *lane);

/* The client asks another replica from now on. */
void msi_census_depart(msi_census *census, msi_lane *lane);

/* The delay closed a batch: lanes that did not ask may not be asking any more. They count again
 * with their next request. */
void msi_census_note_missing(msi_census *census, const msi_inbox *inbox);

/* No lane of the inbox counts. */
void msi_census_uncount_all(msi_census *census, const msi_inbox *inbox);

#endif
