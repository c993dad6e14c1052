/* record_message: one pair of rows on its way into the capture of a head, from the send queue to
 * its reply. */
#ifndef MSI_RECORD_MESSAGE_H
#define MSI_RECORD_MESSAGE_H

#include "client/state.h"

/* Takes the next step of a record that is the first of a send queue; *next is 0 if it has to
 * wait. */
int msi_record_step(msi_client *client, msi_call *call, int *next);

/* The head has granted rows, has taken the record, or has refused. */
void msi_record_replied(msi_client *client, msi_call *call, const msi_reply_header *reply);

/* Its head is dead: another one gets it, if it was not sent. */
void msi_record_lost(msi_client *client, msi_call *call);

/* Ends a record that is in no send queue: gives its rows and its copy back. */
void msi_record_end(msi_client *client, msi_call *call);

/* The bytes of a row of both sides. Are both sides in the half of the slot that the client writes?
 * Else both are in the slabs: the outputs so many rows behind the inputs. */
size_t msi_record_row_bytes(const msi_layout *layout);
int msi_record_is_eager(const msi_layout *layout, int64_t rows);
int64_t msi_record_rows_behind(const msi_layout *layout, int64_t rows);

#endif
