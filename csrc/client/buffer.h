/* buffer: memory that a simulation rank takes for requests that need no copy. */
#ifndef MSI_BUFFER_H
#define MSI_BUFFER_H

#include "client/state.h"

/* As mpiserve_buffer_take() and _give() say; rows is in range. */
int msi_buffer_take(mpiserve_service *service, int64_t rows, mpiserve_buffer *buffer);
int msi_buffer_give(mpiserve_service *service, mpiserve_buffer *buffer);

#endif
