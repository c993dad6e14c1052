/* empty: requests of 0 rows. They have their turn in the queue and in the census as any other, and
 * end when a batch is closed, without the model. */
#ifndef MSI_EMPTY_H
#define MSI_EMPTY_H

#include "head/broker.h"

/* Takes a request that fits neither slot nor lease: one of 0 rows, where the service allows that.
 * Refuses others. */
int msi_empty_take(msi_broker *broker, const msi_entry *entry);

/* Answers all that wait. */
int msi_empty_answer(msi_broker *broker);

#endif
