/* silence: whom an inference rank waits for, once nothing has come for long. No MPI calls. */
#ifndef MSI_SILENCE_H
#define MSI_SILENCE_H

#include "head/serving.h"

/* How long a wait is long, in ns. */
int64_t msi_silence_limit(void);

/* A broker whose clients have not all left, if there is one. */
const msi_broker *msi_silence_witness(const msi_serving *serving);

/* As mpiserve_waiting_get() says; local. */
int msi_silence_text(msi_serving *serving, char *text);

#endif
