/* change_queue: requests of clients for another model in place of the one that answers, in the
 * order of arrival. Each stays until the server has answered it. */
#ifndef MSI_CHANGE_QUEUE_H
#define MSI_CHANGE_QUEUE_H

#include "head/batch.h"
#include "head/inbox.h"

typedef struct msi_change_queue {
  msi_inbox *inboxes;  /* by transport */
  msi_queue waiting;   /* the first one is the server's */
  int is_known;        /* the server knows of the first one */
  uint16_t generation; /* of the model that answers; 1: the one of the start */
} msi_change_queue;

int msi_change_queue_open(msi_change_queue *queue, msi_inbox *inboxes);
void msi_change_queue_close(msi_change_queue *queue);

/* Takes one, which stays in its slot; entry->lease says what is asked. */
int msi_change_queue_push(msi_change_queue *queue, const msi_entry *entry);

/* While any waits: true once for each, when the server has not heard of it. */
int msi_change_queue_has_news(msi_change_queue *queue);

/* While any waits: does the first one replace the model that answers? Then no batch is formed
 * until it is done, so that later requests get the next model. */
int msi_change_queue_pauses(const msi_change_queue *queue);

/* Does one that waits start the service here? */
int msi_change_queue_starts(const msi_change_queue *queue);

/* As mpiserve_change_get() and _reply() say. */
int msi_change_queue_get(const msi_change_queue *queue, mpiserve_change_request *change);
int msi_change_queue_reply(msi_change_queue *queue, int code, const char *text);

#endif
