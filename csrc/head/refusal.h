/* refusal: requests that a head refuses, with texts that say what to do. */
#ifndef MSI_REFUSAL_H
#define MSI_REFUSAL_H

#include "head/broker.h"

/* A simulation rank has ended with an error: MPISERVE_EPEER. */
int msi_refuse_after_failure(msi_broker *broker, const msi_entry *entry);

/* The queue has no room for its rows: MPISERVE_EFULL. */
int msi_refuse_for_room(msi_broker *broker, const msi_entry *entry);

/* A piece of a request, and rows belong together now: MPISERVE_EROWS. */
int msi_refuse_piece(msi_broker *broker, const msi_entry *entry);

#endif
