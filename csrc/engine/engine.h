/* engine: what runs a model without the caller of the library. It knows tensors, and nothing of
 * requests. No MPI calls. */
#ifndef MSI_ENGINE_H
#define MSI_ENGINE_H

#include "mpiserve.h"

/* As mpiserve_engine_load() and mpiserve_engine_close() say. */
int msi_engine_load(const char *library, const char *model, const mpiserve_description *description,
                    mpiserve_engine *engine);
void msi_engine_close(mpiserve_engine *engine);

/* The engine that copies its inputs. MPISERVE_ECONFIG if the outputs are not as the inputs. */
int msi_engine_echo(const mpiserve_description *description, mpiserve_engine *engine);

#endif
