/* chunks: an engine on batches of more rows than it should get at a time. No MPI. */
#ifndef MSI_CHUNKS_H
#define MSI_CHUNKS_H

#include "mpiserve.h"

/* Runs an engine on all rows, so many at a time as it says. in_bytes, out_bytes: of a row. inputs
 * and outputs are changed. Returns what the engine returns. */
int msi_engine_run_chunks(const mpiserve_engine *engine, int64_t rows, const void **inputs,
                          void **outputs, int n_inputs, int n_outputs, const size_t *in_bytes,
                          const size_t *out_bytes, char *text, size_t bytes);

#endif
