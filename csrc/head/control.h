/* control: what clients ask of a head besides rows: another model in place of the one that
 * answers. Kept in the order of arrival until the server has done it. */
#ifndef MSI_CONTROL_H
#define MSI_CONTROL_H

#include "head/batch.h"
#include "head/inbox.h"

typedef struct msi_control {
  msi_port *ports;     /* by transport */
  msi_queue waiting;   /* the first one is the server's */
  int told;            /* ... and it knows */
  uint16_t generation; /* of the model that answers; 1: the one of the start */
} msi_control;

int msi_control_open(msi_control *control, msi_port *ports);
void msi_control_close(msi_control *control);

/* Takes one, which stays in its slot; entry->lease says what is asked. */
int msi_control_push(msi_control *control, const msi_entry *entry);

/* While any waits. Is there one that the server has not been told of? Once for each. */
int msi_control_news(msi_control *control);

/* While any waits. Is the model that answers to go? What comes is then for the next one. */
int msi_control_pauses(const msi_control *control);

/* As mpiserve_control_get() and _reply() say. */
int msi_control_get(const msi_control *control, mpiserve_control *order);
int msi_control_reply(msi_control *control, int code, const char *text);

#endif
