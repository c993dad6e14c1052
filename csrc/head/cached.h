/* cached: a service that keeps answers. A request all of whose rows are kept is answered when the
 * head sees it, without a batch: it waits for no other client, and no batch waits for its client
 * until that sends a row which is not kept. Of all other requests the model gets the rows that are
 * not kept. What has been answered by the model is kept before its client knows of it. */
#ifndef MSI_CACHED_H
#define MSI_CACHED_H

#include "head/cached_rows.h"

/* May the service keep answers? MPISERVE_ECONFIG: not as it is described. */
int msi_cached_check(const mpiserve_description *description, const msi_layout *layout);

/* Makes room, if it does; the inboxes are open. Close allows a broker that was not opened. Local.
 */
int msi_cached_open(msi_broker *broker);
void msi_cached_close(msi_broker *broker);

/* Forgets all answers: another model answers. */
void msi_cached_forget(msi_broker *broker);

/* Answers a request that has just been taken, if all of its rows are kept: 1, and how that went.
 * Else 0. */
int msi_cached_take(msi_broker *broker, const msi_entry *entry, int *code);

/* Answers what waits in the queue and is kept by now. */
int msi_cached_look(msi_broker *broker);

#endif
