/* signatures: descriptions of services, for mpiserve_signatures.f90. Uses the public interface
 * only. */
#include <string.h>

#include "mpiserve.h"

/* mpiserve_fortran_spec: tensor i (from 0) of a side; name of MPISERVE_NAME_SIZE bytes, shape
 * of MPISERVE_MAX_DIMS numbers, in the order of Fortran: the rows are last. */
int mpiserve_fortran_spec(mpiserve_service *service, int output, int i, char *name, int *dtype,
                          int *ndim, int64_t *shape) {
  mpiserve_description d;
  int code = mpiserve_service_describe(service, &d, NULL, NULL, NULL);
  if (code) return code;
  if (i < 0 || i >= (output ? d.n_outputs : d.n_inputs))
    return mpiserve_error(MPISERVE_EARG, "the signature has no tensor of this number");
  const mpiserve_spec *spec = &(output ? d.outputs : d.inputs)[i];
  memcpy(name, spec->name, sizeof spec->name);
  *dtype = spec->dtype;
  *ndim = spec->ndim;
  for (int k = 0; k < spec->ndim; k++) shape[k] = spec->shape[spec->ndim - 1 - k];
  return MPISERVE_OK;
}

/* mpiserve_fortran_describe: name and engine of MPISERVE_NAME_SIZE bytes each. */
int mpiserve_fortran_describe(mpiserve_service *service, char *name, char *engine, int *n_inputs,
                              int *n_outputs, int64_t *max_batch_rows, int *replicas, int *head,
                              int *transport) {
  mpiserve_description d;
  int code = mpiserve_service_describe(service, &d, replicas, head, transport);
  if (code) return code;
  memcpy(name, d.name, sizeof d.name);
  memcpy(engine, d.engine, sizeof d.engine);
  *n_inputs = d.n_inputs;
  *n_outputs = d.n_outputs;
  *max_batch_rows = d.max_batch_rows;
  return MPISERVE_OK;
}
