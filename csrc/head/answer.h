/* answer: the end of a request whose results are where its client looks for them. */
#ifndef MSI_ANSWER_H
#define MSI_ANSWER_H

#include "head/broker.h"

/* Its reply was begun. bytes: of results in its slot. now: when these were there. */
int msi_answer(msi_broker *broker, const msi_entry *entry, const msi_origin *origin, msi_slot *slot,
               size_t bytes, int64_t now);

#endif
