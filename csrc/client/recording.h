/* recording: pairs of inputs and outputs that this rank has computed itself, on their way into the
 * capture of a head. */
#ifndef MSI_RECORDING_H
#define MSI_RECORDING_H

#include "client/state.h"

/* As mpiserve_record() says, with checked tensors in the signature's order; *kept is 0 before. */
int msi_recording_put(mpiserve_service *service, int64_t rows, void *const *inputs,
                      void *const *outputs, int *kept);

/* Records rows that the caller's function has answered in place of a model, with the uncertainty of
 * that, where they are captured. An error is that of the next mpiserve_record(), or of close. */
void msi_recording_add(mpiserve_service *service, int64_t rows, void *const *inputs,
                       void *const *outputs);

/* The code and text of the first record that has failed since the last call. */
int msi_recording_failure(msi_client *client);

/* Frees the copies that were not sent. */
void msi_recording_free(msi_client *client);

#endif
