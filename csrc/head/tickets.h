/* tickets: a batch ends without an answer, and each of its requests is answered later, by its
 * ticket. */
#ifndef MSI_TICKETS_H
#define MSI_TICKETS_H

#include "head/serving.h"

/* As mpiserve_batch_hold(), mpiserve_ticket_wanted(), _reply() and _fail() say. */
int msi_tickets_hold(msi_serving *serving, mpiserve_ticket *tickets);
int msi_tickets_wanted(msi_serving *serving, mpiserve_ticket *ticket, int *wanted);
int msi_tickets_reply(msi_serving *serving, mpiserve_ticket *ticket, const void *const *outputs);
int msi_tickets_fail(msi_serving *serving, mpiserve_ticket *ticket, int code, const char *text);

#endif
