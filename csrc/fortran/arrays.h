/* arrays: what the C files of the Fortran module share. Each is a mirror of, or serves,
 * type(tensor) of mpiserve_c.f90. Only the public interface of mpiserve.h is used. */
#ifndef MSF_ARRAYS_H
#define MSF_ARRAYS_H

#include <stdint.h>

#include "mpiserve.h"

/* An array of the program. A mirror of type(tensor). */
typedef struct array {
  char *base;
  int64_t bytes; /* of an element */
  int32_t type;  /* CFI_type_... */
  int32_t rank;
  int64_t extents[MPISERVE_MAX_DIMS], strides[MPISERVE_MAX_DIMS]; /* strides in bytes */
  int32_t row_dims; /* the last so many dimensions count rows, as one */
  int32_t trouble;  /* enum trouble */
  uint64_t copy;    /* of msf_values_keep(): base is this copy; 0: the program's memory */
  char name[MPISERVE_NAME_SIZE]; /* "": by position */
  int64_t *shape;                /* where the program wants that of the result, or NULL */
  int64_t shape_size;            /* numbers that it has room for */
} array;

/* What input() and output() found; the call reports it. */
enum trouble { FINE, LOST, NO_MEMORY, NO_ROW_DIMS, OTHER_BINDING };

/* A dense copy of an array that takes part in a call. */
typedef struct parcel {
  struct parcel *next;
  array array; /* the original */
  void *dense;
  enum { STAYS, COMES_BACK, IS_SHAPE } what; /* an input, an output, shapes of results */
  mpiserve_session *session;
  uint64_t id; /* of the request */
  int n_shapes;
  struct {
    int64_t *to, size;
  } shapes[MPISERVE_MAX_TENSORS]; /* IS_SHAPE: where the program wants those of the outputs */
} parcel;

/* sections.c: arrays with gaps, or in another order, and their dense copies. */
int64_t msf_elements(const array *a);
int msf_is_dense(const array *a);
void msf_copy(const array *a, char *dense, int back);
int msf_pack(const array *a, int comes_back, parcel **list, void **dense);
int msf_pack_shapes(int n, const array *outputs, const mpiserve_tensor *tensors, parcel **list,
                    int64_t **shapes); /* NULL: the program wants none */
int msf_infer_any(mpiserve_session *session, mpiserve_service *service, int n_inputs,
                  const mpiserve_tensor *inputs, int n_outputs, const mpiserve_tensor *outputs,
                  int64_t *shapes, double timeout, mpiserve_stats *stats);
int msf_parcel(void *dense, const array *a, parcel **list); /* takes dense, also on failure */
void msf_unpack(parcel *list, int code);
void msf_keep(parcel *list, mpiserve_session *session, uint64_t id);
parcel *msf_take(const mpiserve_session *session, uint64_t id);
parcel *msf_take_all(const mpiserve_session *session);
uint64_t msf_next_waiting(const mpiserve_session *session, uint64_t after);

/* inputs.c: values of inputs from input() to the call, and in-place memory. */
enum { MSF_KEPT = 1024 }; /* values that no call has taken; then the oldest are dropped */
void msf_copy_values(array *a);
int msf_give_values(const array *a, parcel **parcels);
void *msf_values_take(uint64_t id); /* NULL: they were taken, or dropped */
void msf_values_drop(void);         /* all */
int msf_location_add(mpiserve_session *session, mpiserve_service *service,
                     const mpiserve_buffer *b);
void msf_locations_drop(const mpiserve_session *session, const mpiserve_service *service,
                        uint64_t buffer); /* service NULL: all */

#endif
