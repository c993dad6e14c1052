/* late: answers to requests whose batch is over: held by tickets, in place of an answer to
 * their batch. */
#ifndef MSI_LATE_H
#define MSI_LATE_H

#include "head/serving.h"

/* As mpiserve_batch_hold(), mpiserve_ticket_wanted(), _reply() and _fail() say. */
int msi_late_hold(msi_serving *serving, mpiserve_ticket *tickets);
int msi_late_wanted(msi_serving *serving, mpiserve_ticket *ticket, int *wanted);
int msi_late_reply(msi_serving *serving, mpiserve_ticket *ticket, const void *const *outputs);
int msi_late_fail(msi_serving *serving, mpiserve_ticket *ticket, int code, const char *text);

#endif
