/* recording: pairs of inputs and outputs that this rank has computed itself, on their way into the
 * capture of a head. */
#ifndef MSI_RECORDING_H
#define MSI_RECORDING_H

#include "client/state.h"

/* As mpiserve_record() says, with checked tensors in the signature's order. */
int msi_recording_put(mpiserve_service *service, int64_t rows, void *const *inputs,
                      void *const *outputs, int *kept);

/* The code and text of the first record that has failed since the last call. */
int msi_recording_failure(msi_client *client);

/* Takes the next step of a record that is the first of a send queue; *next is 0 if it has to
 * wait. */
int msi_recording_step(msi_client *client, msi_call *call, int *next);

/* The head has granted rows, has taken the record, or has refused. */
void msi_recording_replied(msi_client *client, msi_call *call, const msi_reply_header *reply);

/* Its head is dead: another one gets it, if it was not sent. */
void msi_recording_lost(msi_client *client, msi_call *call);

/* Frees the copies that were not sent. */
void msi_recording_free(msi_client *client);

#endif
