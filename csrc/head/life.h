/* life: the state of a replica, where clients read it. */
#ifndef MSI_LIFE_H
#define MSI_LIFE_H

#include "head/inbox.h"

typedef struct msi_life {
  int n; /* segments of the service */
  msi_section_header *headers[MSI_TRANSPORTS];
  int64_t last_ns;       /* of the last change: times go on, though clocks may be set back */
  int64_t since_1970_ns; /* of the wall clock, when the monotonic clock was 0 */
  int64_t launched_ns, ready_ns; /* since 1970, for the first time */
  int64_t state;                 /* the last one that was entered, BUSY left out */
} msi_life;

/* The memory of the inboxes is there and cleared. The rank was launched, and began to load, at
 * these times of the monotonic clock; now the service is ready or has failed. */
void msi_life_begin(msi_life *life, const msi_inbox *inboxes, int64_t launched_ns,
                    int64_t loading_ns, int error);

void msi_life_enter(msi_life *life, int state);

/* Busy since a time of the monotonic clock; 0: not busy. Each batch comes here. */
static inline void msi_life_busy(msi_life *life, int64_t since_ns) {
  int64_t wall_ns = since_ns ? since_ns + life->since_1970_ns : 0;
  for (int i = 0; i < life->n; i++)
    atomic_store_explicit(&life->headers[i]->entered_ns[MPISERVE_BUSY], wall_ns,
                          memory_order_relaxed); /* it orders nothing */
}

#endif
