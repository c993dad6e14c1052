/* sleep: may a head sleep until clients ring their doorbells, how long, and until how many do? No
 * MPI calls. */
#ifndef MSI_SLEEP_H
#define MSI_SLEEP_H

#include "head/broker.h"

/* Has it nothing to do until a client rings? Lowers *until_ns, if that is not 0, to the time when
 * it has in any case. */
int msi_sleep_may(const msi_broker *broker, int64_t *until_ns);

/* How many clients must ring before there is a batch, if each asks once and for as many rows as
 * those that wait; at least 1. */
uint32_t msi_sleep_missing(const msi_broker *broker);

#endif
