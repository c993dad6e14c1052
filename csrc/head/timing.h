/* timing: where the time of requests goes, as their head sees it. Only with MSI_PROFILED. */
#ifndef MSI_HEAD_TIMING_H
#define MSI_HEAD_TIMING_H

#include "head/serving.h"

/* Gives the services of a rank their parts of a profile. */
void msi_timing_attach(msi_serving *serving, msi_profile *profile);

/* A batch was closed, and its rows are side by side; it has ended. */
void msi_timing_closed(msi_broker *broker, msi_close_reason reason);
void msi_timing_free(msi_broker *broker);

/* The replica enters a state; the first change that waits is done, with this code. */
void msi_timing_state(const msi_broker *broker, int state);
void msi_timing_change(const msi_broker *broker, int code);

/* The reply to a request is in its slot, but for its sequence: captures it, if that is wanted, and
 * adds the times. */
void msi_timing_reply(msi_broker *broker, const msi_entry *entry, const msi_origin *origin,
                      msi_slot *slot, int64_t computed_ns);

#endif
