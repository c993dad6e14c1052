/* reply: from a batch or a held request back to the slots of its clients. */
#ifndef MSI_REPLY_H
#define MSI_REPLY_H

#include "head/broker.h"

/* As mpiserve_batch_reply_rows(), _reply() and _fail() say. */
int msi_reply_rows(msi_broker *broker, int64_t rows, const void *const *outputs);
int msi_reply_all(msi_broker *broker, const void *const *outputs);
int msi_reply_fail(msi_broker *broker, int code, const char *text);

/* As mpiserve_batch_clients() says. */
int msi_reply_clients(const msi_broker *broker, int32_t *clients);

/* Of the batch that is open. */
msi_origin msi_reply_origin(const msi_broker *broker);

/* Answers a request of such a batch with its rows of outputs, from row m->at on. */
int msi_reply_member(msi_broker *broker, const msi_entry *m, const msi_origin *origin,
                     const void *const *outputs, int64_t now);

#endif
