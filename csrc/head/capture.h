/* capture: copies requests and their answers into a ring, from which another process writes them to
 * disk. Of requests only with MSI_PROFILED. */
#ifndef MSI_CAPTURE_H
#define MSI_CAPTURE_H

#include "head/serving.h"

/* As mpiserve_capture_set() says. */
int msi_capture_set(msi_serving *serving, int service, const mpiserve_capture *wanted);

/* Of all services. */
void msi_capture_close(msi_serving *serving);

/* The answer to a request is where its client looks for it, but the client does not know yet. */
void msi_capture_reply(msi_broker *broker, const msi_entry *entry, const msi_origin *origin,
                       msi_slot *slot);

/* Takes rows that a client has recorded, and replies: their number, or 0 if they are not captured.
 */
int msi_capture_take(msi_broker *broker, const msi_entry *entry);

#endif
