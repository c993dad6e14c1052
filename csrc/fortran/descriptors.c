/* descriptors: the C half of the Fortran module. Fortran passes arrays of any type, kind and rank
 * as descriptors, which become tensors of mpiserve.h here. Sections that are not contiguous are
 * packed before the call, and unpacked after it.
 *
 * The C compiler must belong to the Fortran compiler, because ISO_Fortran_binding.h does. Uses the
 * public interface only. */
#include <ISO_Fortran_binding.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arrays.h"

/* Mirrors type(request). */
typedef struct request {
  mpiserve_session *session;
  mpiserve_request id;
} request;

/* One call: its arrays as tensors. */
typedef struct call {
  mpiserve_tensor inputs[MPISERVE_MAX_TENSORS], outputs[MPISERVE_MAX_TENSORS];
  parcel *parcels;
  int64_t *shapes; /* of the results; NULL: those of the outputs */
} call;

/* ---- types ------------------------------------------------------------------- */

static const struct {
  int type, dtype;
} TYPES[] = {
    {CFI_type_Bool, MPISERVE_BOOL},
    {CFI_type_int8_t, MPISERVE_INT8},
    {CFI_type_int16_t, MPISERVE_INT16},
    {CFI_type_int32_t, MPISERVE_INT32},
    {CFI_type_int64_t, MPISERVE_INT64},
    {CFI_type_float, MPISERVE_FLOAT32},
    {CFI_type_double, MPISERVE_FLOAT64},
    {CFI_type_float_Complex, MPISERVE_COMPLEX64},
    {CFI_type_double_Complex, MPISERVE_COMPLEX128},
    /* The same kinds under C's other names, which some compilers tell apart. */
    {CFI_type_signed_char, MPISERVE_INT8},
    {CFI_type_short, MPISERVE_INT16},
    {CFI_type_int, MPISERVE_INT32},
    {CFI_type_long, MPISERVE_INT64},
    {CFI_type_long_long, MPISERVE_INT64},
};

/* How an array of each dtype is declared. Fortran has no unsigned and no short real kinds:
 * integers of the same size hold their bits. */
static const char *const DECLARATIONS[] = {
    [MPISERVE_BOOL] = "logical(c_bool)",       [MPISERVE_UINT8] = "integer(int8)",
    [MPISERVE_INT8] = "integer(int8)",         [MPISERVE_INT16] = "integer(int16)",
    [MPISERVE_INT32] = "integer(int32)",       [MPISERVE_INT64] = "integer(int64)",
    [MPISERVE_FLOAT16] = "integer(int16)",     [MPISERVE_BFLOAT16] = "integer(int16)",
    [MPISERVE_FLOAT32] = "real(real32)",       [MPISERVE_FLOAT64] = "real(real64)",
    [MPISERVE_UINT16] = "integer(int16)",      [MPISERVE_UINT32] = "integer(int32)",
    [MPISERVE_UINT64] = "integer(int64)",      [MPISERVE_COMPLEX64] = "complex(real32)",
    [MPISERVE_COMPLEX128] = "complex(real64)",
};

static int dtype_of(const array *a) {
  for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++)
    if (TYPES[i].type == a->type) return TYPES[i].dtype;
  return -1;
}

/* The signature of an array, or NULL: then the call itself reports what is wrong. */
static const mpiserve_spec *spec_of(const array *a, int at, int n, const mpiserve_spec *specs) {
  if (!a->name[0]) return at < n ? &specs[at] : NULL;
  for (int i = 0; i < n; i++)
    if (!strcmp(specs[i].name, a->name)) return &specs[i];
  return NULL;
}

static int no_dtype(const array *a, const mpiserve_spec *spec) {
  char text[MPISERVE_TEXT_SIZE];
  snprintf(text, sizeof text,
           "tensor '%s': no dtype fits the type of this array (%lld bytes an element); the "
           "signature says %s, which is %s in Fortran",
           spec ? spec->name : a->name, (long long)a->bytes,
           spec ? mpiserve_dtype_name(spec->dtype) : "another",
           spec ? DECLARATIONS[spec->dtype] : "another type");
  return mpiserve_error(MPISERVE_EDTYPE, text);
}

/* Integers stand for the dtypes that Fortran does not have: those that are declared alike. */
static int as_signature(int dtype, const mpiserve_spec *spec) {
  if (!spec || strcmp(DECLARATIONS[dtype], DECLARATIONS[spec->dtype]) != 0) return dtype;
  return spec->dtype;
}

/* ---- arrays become tensors ------------------------------------------------------ */

static int shape_of(const array *a, mpiserve_tensor *tensor) {
  int inner = a->rank - a->row_dims;
  for (int d = 0; d < a->rank; d++)
    if (a->extents[d] < 0)
      return mpiserve_error(MPISERVE_ESHAPE,
                            "an assumed-size array has no last extent: pass a section, x(:, 1:n)");
  /* The first index runs fastest here and the last one there: nothing is transposed. */
  tensor->ndim = inner + 1;
  tensor->shape[0] = 1; /* a scalar is one row */
  for (int d = inner; d < a->rank; d++) tensor->shape[0] *= a->extents[d];
  for (int d = 0; d < inner; d++) tensor->shape[inner - d] = a->extents[d];
  return MPISERVE_OK;
}

/* What input() or output() found; i counts from 0 within inputs or outputs. */
static int trouble_of(const array *a, int i) {
  char text[MPISERVE_TEXT_SIZE];
  if (a->trouble == OTHER_BINDING)
    return mpiserve_error(MPISERVE_EVERSION,
                          "the C files of module mpiserve were compiled with ISO_Fortran_binding.h "
                          "of another Fortran compiler: compile them with that of this one");
  if (a->rank > MPISERVE_MAX_DIMS)
    return mpiserve_error(MPISERVE_ESHAPE, "an array of more than 8 dimensions");
  if (a->trouble == NO_MEMORY)
    return mpiserve_error(MPISERVE_ENOMEM, "no memory to copy the values of an input");
  if (a->trouble == NO_ROW_DIMS) {
    snprintf(text, sizeof text, "row_dims is not 1 to %d, the number of dimensions of the array",
             a->rank);
    return mpiserve_error(MPISERVE_EARG, text);
  }
  if (a->trouble != LOST) return MPISERVE_OK;
  snprintf(
      text, sizeof text,
      "output %d%s%s: it seems that the compiler passes a copy of this array, which is gone before "
      "the answer comes; it does so for components of arrays of a derived type, and what a "
      "function "
      "gives with lower bounds of 0 looks the same. Give a whole array or a section of one, y(:), "
      "and copy the answer from there; or call infer()",
      i + 1, a->name[0] ? ", " : "", a->name);
  return mpiserve_error(MPISERVE_EARG, text);
}

static int to_tensor(const array *a, int i, const mpiserve_spec *spec, int comes_back,
                     parcel **parcels, mpiserve_tensor *tensor) {
  int dtype = dtype_of(a), code = trouble_of(a, i);
  if (!code) code = shape_of(a, tensor);
  if (!code && dtype < 0) code = no_dtype(a, spec);
  if (code) return code;
  tensor->name = a->name[0] ? a->name : NULL;
  tensor->dtype = as_signature(dtype, spec);
  tensor->data = a->base;
  if (a->copy) return msf_give_values(a, parcels);
  if (!a->base || msf_is_dense(a)) return MPISERVE_OK;
  return msf_pack(a, comes_back, parcels, &tensor->data);
}

static int to_tensors(int n, const array *arrays, int n_specs, const mpiserve_spec *specs,
                      int comes_back, parcel **parcels, mpiserve_tensor *tensors) {
  int code = MPISERVE_OK;
  if (n > MPISERVE_MAX_TENSORS)
    return mpiserve_error(MPISERVE_ESHAPE, "more than 16 tensors in a call");
  for (int i = 0; i < n && !code; i++)
    code = to_tensor(&arrays[i], i, spec_of(&arrays[i], i, n_specs, specs), comes_back, parcels,
                     &tensors[i]);
  return code;
}

/* Most arrays say by themselves which dtype they are. */
static int ambiguous(int n, const array *arrays) {
  for (int i = 0; i < n; i++) {
    int dtype = dtype_of(&arrays[i]);
    if (arrays[i].trouble == OTHER_BINDING) return 0; /* that is the error */
    if (dtype < 0 || (dtype >= MPISERVE_INT8 && dtype <= MPISERVE_INT64)) return 1;
  }
  return 0;
}

/* Of a call that failed before it took them all. */
static void drop_values(int n, const array *arrays) {
  for (int i = 0; i < n; i++)
    if (arrays[i].copy) free(msf_values_take(arrays[i].copy));
}

/* Afterwards msf_unpack() or msf_keep() is due, also after an error. */
static int load(mpiserve_service *service, int n_inputs, const array *inputs, int n_outputs,
                const array *outputs, int outputs_come_back, call *c) {
  mpiserve_description d;
  int code = MPISERVE_OK;
  c->parcels = NULL;
  c->shapes = NULL;
  d.n_inputs = d.n_outputs = 0;
  if (ambiguous(n_inputs, inputs) || ambiguous(n_outputs, outputs))
    code = mpiserve_service_describe(service, &d, NULL, NULL, NULL);
  if (!code) code = to_tensors(n_inputs, inputs, d.n_inputs, d.inputs, 0, &c->parcels, c->inputs);
  if (!code)
    code = to_tensors(n_outputs, outputs, d.n_outputs, d.outputs, outputs_come_back, &c->parcels,
                      c->outputs);
  if (!code && outputs_come_back)
    code = msf_pack_shapes(n_outputs, outputs, c->outputs, &c->parcels, &c->shapes);
  if (code) drop_values(n_inputs, inputs);
  if (code && !outputs_come_back) drop_values(n_outputs, outputs);
  return code;
}

/* Sessions of this interface. */
static atomic_int n_open;

/* ---- called from Fortran --------------------------------------------------------- */

/* The first row_dims dimensions count rows; 0: the last one. Rows come last. */
static void describe(const CFI_cdesc_t *x, int row_dims, array *a) {
  int first = row_dims > 0 ? row_dims : 0;
  *a = (array){.base = x->base_addr, .bytes = (int64_t)x->elem_len, .type = x->type};
  a->rank = x->rank;
  a->row_dims = row_dims ? row_dims : x->rank > 0;
  if (row_dims < 0 || row_dims > x->rank) a->trouble = NO_ROW_DIMS;
  if (x->version != CFI_VERSION) a->trouble = OTHER_BINDING;
  if (a->trouble || x->rank > MPISERVE_MAX_DIMS) return;
  for (int d = 0; d < x->rank; d++) {
    a->extents[d] = x->dim[(d + first) % x->rank].extent;
    a->strides[d] = x->dim[(d + first) % x->rank].sm;
  }
}

/* mpiserve_fortran_array: an array that exists until the call has ended, as the dummy argument of a
 * blocking call does. */
void mpiserve_fortran_array(const CFI_cdesc_t *x, const char *name, int row_dims, array *a) {
  describe(x, row_dims, a);
  snprintf(a->name, sizeof a->name, "%s", name);
}

/* mpiserve_fortran_input: an array that may be a temporary of the compiler's. */
void mpiserve_fortran_input(const CFI_cdesc_t *x, const char *name, int row_dims, array *a) {
  mpiserve_fortran_array(x, name, row_dims, a);
  msf_copy_values(a);
}

/* mpiserve_fortran_output: an array that must exist until the request has ended, and so must shape,
 * which may be NULL. The compiler's copies are dense; it makes none of scalars. */
void mpiserve_fortran_output(const CFI_cdesc_t *x, const char *name, int row_dims, int is_copy,
                             int64_t *shape, int64_t shape_size, array *a) {
  array in_order;
  mpiserve_fortran_array(x, name, row_dims, a);
  describe(x, 0, &in_order);
  if (is_copy && !a->trouble && a->rank && msf_is_dense(&in_order)) a->trouble = LOST;
  a->shape = shape;
  a->shape_size = shape_size;
}

int mpiserve_fortran_infer(mpiserve_session *session, mpiserve_service *service, int n_inputs,
                           const array *inputs, int n_outputs, const array *outputs, double timeout,
                           mpiserve_stats *stats) {
  call c;
  int code = load(service, n_inputs, inputs, n_outputs, outputs, 1, &c);
  if (!code && c.shapes)
    code = msf_infer_any(session, service, n_inputs, c.inputs, n_outputs, c.outputs, c.shapes,
                         timeout, stats);
  else if (!code)
    code = mpiserve_infer(service, n_inputs, c.inputs, n_outputs, c.outputs, timeout, stats);
  msf_unpack(c.parcels, code);
  return code;
}

int mpiserve_fortran_submit(mpiserve_session *session, mpiserve_service *service, int n_inputs,
                            const array *inputs, int n_outputs, const array *outputs,
                            const mpiserve_options *options, request *r) {
  call c;
  *r = (request){session, {0}};
  int code = load(service, n_inputs, inputs, n_outputs, outputs, 1, &c);
  mpiserve_options with_shapes = *options;
  with_shapes.result_shapes = c.shapes;
  if (!code)
    code = mpiserve_submit(service, n_inputs, c.inputs, n_outputs, c.outputs, &with_shapes, &r->id);
  if (code)
    msf_unpack(c.parcels, code);
  else if (c.parcels)
    msf_keep(c.parcels, session, r->id.id);
  return code;
}

/* mpiserve_fortran_pace_step: results have the shapes of the outputs. */
int mpiserve_fortran_pace_step(mpiserve_service *service, const mpiserve_pace *pace, int n_inputs,
                               const array *inputs, int n_outputs, const array *outputs,
                               double timeout, mpiserve_stats *stats) {
  call c;
  int code = load(service, n_inputs, inputs, n_outputs, outputs, 1, &c);
  if (!code && c.shapes)
    code = mpiserve_error(MPISERVE_EARG, "output() of a step of a pace can have no shape");
  if (!code)
    code =
        mpiserve_pace_step(service, pace, n_inputs, c.inputs, n_outputs, c.outputs, timeout, stats);
  msf_unpack(c.parcels, code);
  return code;
}

/* mpiserve_fortran_record: outputs are read as inputs are. */
int mpiserve_fortran_record(mpiserve_service *service, int n_inputs, const array *inputs,
                            int n_outputs, const array *outputs, int *kept) {
  call c;
  *kept = 0;
  int code = load(service, n_inputs, inputs, n_outputs, outputs, 0, &c);
  if (!code) code = mpiserve_record(service, n_inputs, c.inputs, n_outputs, c.outputs, kept);
  msf_unpack(c.parcels, code);
  return code;
}

/* Only a request that has ended has no number. MPISERVE_ESTATE may say that another thread is in a
 * call: then the library still uses what was packed. */
static void end(const request *r, uint64_t id, int code) {
  if (!r->id.id) msf_unpack(msf_take(r->session, id), code);
}

int mpiserve_fortran_wait(request *r, double timeout, mpiserve_stats *stats) {
  uint64_t id = r->id.id;
  int code = mpiserve_wait(r->session, &r->id, timeout, stats);
  end(r, id, code);
  return code;
}

int mpiserve_fortran_test(request *r, int *done, mpiserve_stats *stats) {
  uint64_t id = r->id.id;
  *done = 0;
  int code = mpiserve_test(r->session, &r->id, done, stats);
  end(r, id, code);
  return code;
}

int mpiserve_fortran_cancel(request *r) {
  uint64_t id = r->id.id;
  int code = mpiserve_cancel(r->session, &r->id);
  end(r, id, code ? code : MPISERVE_ECANCELLED);
  return code;
}

/* Requests whose outputs are sections end before the session does, so that these are written. */
static int end_waiting(mpiserve_session *session, double timeout) {
  uint64_t id, after = 0;
  while ((id = msf_next_waiting(session, after))) {
    mpiserve_request r = {id};
    int done = 1, code = mpiserve_wait(session, &r, timeout, NULL);
    if (code == MPISERVE_ESTATE) {
      done = 0; /* and so it stays, but for a request that has ended, by mpiserve_fail() */
      code = mpiserve_test(session, &r, &done, NULL);
    }
    if (!done && code) return code;
    if (!r.id) msf_unpack(msf_take(session, id), code);
    if (done) after = id;
  }
  return MPISERVE_OK;
}

/* What is kept of a session that mpiserve_close() has closed, or has not. */
static int after_close(mpiserve_session *session, int code) {
  if (code == MPISERVE_ESTATE || code == MPISERVE_EARG) return code; /* nothing has happened */
  /* All this is of the session that was closed: the library gives its address to another one only
   * when it has given all other free ones. It cannot go before the close, which may be refused
   * because another thread is in a call that ends a request. */
  msf_unpack(msf_take_all(session), MPISERVE_ESTATE);
  msf_locations_drop(session, NULL, 0);
  if (session && atomic_fetch_sub(&n_open, 1) == 1) msf_values_drop();
  return code;
}

int mpiserve_fortran_close(mpiserve_session *session) {
  int code = end_waiting(session, MPISERVE_FOREVER);
  return after_close(session, code ? code : mpiserve_close(session));
}

int mpiserve_fortran_close_within(mpiserve_session *session, double timeout) {
  int code = end_waiting(session, timeout);
  return after_close(session, code ? code : mpiserve_close_within(session, timeout));
}

/* Buffers: input() knows their memory. */
int mpiserve_fortran_buffer_take(mpiserve_session *session, mpiserve_service *service, int64_t rows,
                                 mpiserve_buffer *buffer) {
  int code = mpiserve_buffer_take(service, rows, buffer);
  if (code) return code;
  code = msf_location_add(session, service, buffer);
  if (code) mpiserve_buffer_give(service, buffer);
  return code;
}

int mpiserve_fortran_buffer_give(mpiserve_session *session, mpiserve_service *service,
                                 mpiserve_buffer *buffer) {
  uint64_t id = buffer->id;
  int code = mpiserve_buffer_give(service, buffer);
  if (!code) msf_locations_drop(session, service, id);
  return code;
}

/* mpiserve_fortran_scalar: what a compiler that passes dimension(..) would make of a scalar; made
 * has room for 64 bytes. dtype: of TYPES; -1: another type of Fortran's own; -2: a structure. */
void mpiserve_fortran_scalar(void *x, int64_t bytes, int dtype, CFI_cdesc_t *made) {
  _Static_assert(sizeof *made <= 64,
                 "type(descriptor) of mpiserve_scalars.f90 has too little room");
  int type = dtype == -2 ? CFI_type_struct : CFI_type_char;
  for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES && dtype >= 0; i++)
    if (TYPES[i].dtype == dtype) type = TYPES[i].type;
  memset(made, 0, sizeof *made);
  made->base_addr = x;
  made->elem_len = (size_t)bytes;
  made->version = CFI_VERSION;
  made->type = (CFI_type_t)type;
}

/* A communicator is an integer (mpif.h, use mpi) or a type(MPI_Comm), which holds just that. */
static int check_comm(const CFI_cdesc_t *comm) {
  int number = comm->type == CFI_type_int || comm->type == CFI_type_int32_t;
  int structure = comm->type == CFI_type_struct || comm->type == CFI_type_other;
  if (comm->rank == 0 && comm->elem_len == sizeof(MPI_Fint) && (number || structure))
    return MPISERVE_OK;
  return mpiserve_error(MPISERVE_EARG, "a communicator is an integer or a type(MPI_Comm)");
}

/* A handle that was lost could not be closed, and the world would wait for it in MPI_Finalize. */
int mpiserve_fortran_open(const CFI_cdesc_t *comm, mpiserve_session **session) {
  int n;
  if (*session && !mpiserve_service_count(*session, &n))
    return mpiserve_error(MPISERVE_ESTATE, "this session is open: close it first");
  *session = NULL;
  int code = check_comm(comm);
  if (code) return code;
  code = mpiserve_open_f(*(const MPI_Fint *)comm->base_addr, MPISERVE_SIMULATION, session);
  if (*session) atomic_fetch_add(&n_open, 1);
  return code;
}

int mpiserve_fortran_get_comm(mpiserve_session *session, const CFI_cdesc_t *comm) {
  int code = check_comm(comm);
  return code ? code : mpiserve_comm_f(session, (MPI_Fint *)comm->base_addr);
}
