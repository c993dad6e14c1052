/* descriptors: what mpiserve.f90 needs of C. Fortran passes arrays of any type, kind and
 * rank as descriptors; here they become tensors of mpiserve.h. Sections that are not
 * contiguous are packed before the call, and unpacked after it.
 *
 * Compiled with the C compiler that belongs to the Fortran compiler, whose header
 * ISO_Fortran_binding.h is. Uses the public interface only. */
#include <ISO_Fortran_binding.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mpiserve.h"

/* An array of the program. A mirror of type(tensor). */
typedef struct array {
  char *base;
  int64_t bytes; /* of an element */
  int32_t type;  /* CFI_type_... */
  int32_t rank;
  int64_t extents[MPISERVE_MAX_DIMS], strides[MPISERVE_MAX_DIMS]; /* strides in bytes */
  char name[MPISERVE_NAME_SIZE];                                  /* "": by position */
} array;

/* Mirrors type(request). */
typedef struct request {
  mpiserve_session *session;
  mpiserve_request id;
} request;

/* A section, and the dense copy of it that takes part in the call. */
typedef struct parcel {
  struct parcel *next;
  array array;
  void *dense;
  int comes_back; /* an output */
  mpiserve_session *session;
  uint64_t id; /* of the request */
} parcel;

/* One call: its arrays as tensors. */
typedef struct call {
  mpiserve_tensor inputs[MPISERVE_MAX_TENSORS], outputs[MPISERVE_MAX_TENSORS];
  parcel *parcels;
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
    [MPISERVE_BOOL] = "logical(c_bool)",   [MPISERVE_UINT8] = "integer(int8)",
    [MPISERVE_INT8] = "integer(int8)",     [MPISERVE_INT16] = "integer(int16)",
    [MPISERVE_INT32] = "integer(int32)",   [MPISERVE_INT64] = "integer(int64)",
    [MPISERVE_FLOAT16] = "integer(int16)", [MPISERVE_BFLOAT16] = "integer(int16)",
    [MPISERVE_FLOAT32] = "real(real32)",   [MPISERVE_FLOAT64] = "real(real64)",
};

static int dtype_of(const array *a) {
  for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++)
    if (TYPES[i].type == a->type) return TYPES[i].dtype;
  return -1;
}

/* What the signature says of an array, or NULL: then the call itself will tell what is wrong. */
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

/* Integers take the place of the dtypes that Fortran does not have. */
static int as_signature(int dtype, const mpiserve_spec *spec) {
  if (!spec) return dtype;
  int same = (dtype == MPISERVE_INT8 && spec->dtype == MPISERVE_UINT8) ||
             (dtype == MPISERVE_INT16 &&
              (spec->dtype == MPISERVE_FLOAT16 || spec->dtype == MPISERVE_BFLOAT16));
  return same ? spec->dtype : dtype;
}

/* ---- sections ------------------------------------------------------------------ */

/* How many leading dimensions lie without a gap; *block is their size in bytes. */
static int dense_dims(const array *a, int64_t *block) {
  int d = 0;
  *block = a->bytes;
  while (d < a->rank && (a->extents[d] == 1 || a->strides[d] == *block)) *block *= a->extents[d++];
  return d;
}

static int64_t elements(const array *a) {
  int64_t n = 1;
  for (int d = 0; d < a->rank; d++) n *= a->extents[d];
  return n;
}

/* Copies a section to dense memory (or back), block by block. */
static void copy(const array *a, char *dense, int back) {
  int64_t block, index[MPISERVE_MAX_DIMS] = {0};
  int first = dense_dims(a, &block), d = first;
  if (!elements(a)) return;
  while (1) {
    char *at = a->base;
    for (int k = first; k < a->rank; k++) at += index[k] * a->strides[k];
    memcpy(back ? at : dense, back ? dense : at, (size_t)block);
    dense += block;
    for (d = first; d < a->rank && ++index[d] == a->extents[d]; d++) index[d] = 0;
    if (d == a->rank) return;
  }
}

static int pack(const array *a, int comes_back, parcel **list, void **dense) {
  parcel *p = malloc(sizeof *p);
  *dense = p ? malloc((size_t)(elements(a) * a->bytes) + 1) : NULL;
  if (!*dense) {
    free(p);
    return mpiserve_error(MPISERVE_ENOMEM, "no memory to pack a section of an array");
  }
  *p = (parcel){.next = *list, .array = *a, .dense = *dense, .comes_back = comes_back};
  *list = p;
  if (!comes_back) copy(a, *dense, 0);
  return MPISERVE_OK;
}

/* What was packed goes: outputs to where they belong, if the call went well. */
static void unpack(parcel *list, int code) {
  while (list) {
    parcel *p = list;
    list = p->next;
    if (code == MPISERVE_OK && p->comes_back) copy(&p->array, p->dense, 1);
    free(p->dense);
    free(p);
  }
}

/* ---- parcels of requests that have not ended ----------------------------------- */

/* Of all sessions, each of which may be another thread's. Most programs have none. */
static parcel *waiting;
static atomic_int n_waiting;
static pthread_mutex_t waiting_lock = PTHREAD_MUTEX_INITIALIZER;

static void keep(parcel *list, mpiserve_session *session, uint64_t id) {
  pthread_mutex_lock(&waiting_lock);
  while (list) {
    parcel *p = list;
    list = p->next;
    p->session = session;
    p->id = id;
    p->next = waiting;
    waiting = p;
    atomic_fetch_add(&n_waiting, 1);
  }
  pthread_mutex_unlock(&waiting_lock);
}

static parcel *take(const mpiserve_session *session, uint64_t id) {
  parcel *list = NULL;
  if (!atomic_load(&n_waiting)) return NULL;
  pthread_mutex_lock(&waiting_lock);
  for (parcel **at = &waiting; *at;) {
    parcel *p = *at;
    if (p->session != session || p->id != id) {
      at = &p->next;
      continue;
    }
    *at = p->next;
    p->next = list;
    list = p;
    atomic_fetch_sub(&n_waiting, 1);
  }
  pthread_mutex_unlock(&waiting_lock);
  return list;
}

/* A request of the session that has parcels; 0: none. */
static uint64_t next_waiting(const mpiserve_session *session) {
  uint64_t id = 0;
  if (!atomic_load(&n_waiting)) return 0;
  pthread_mutex_lock(&waiting_lock);
  for (parcel *p = waiting; p && !id; p = p->next)
    if (p->session == session) id = p->id;
  pthread_mutex_unlock(&waiting_lock);
  return id;
}

/* ---- arrays become tensors ------------------------------------------------------ */

static int shape_of(const array *a, mpiserve_tensor *tensor) {
  if (a->rank > MPISERVE_MAX_DIMS)
    return mpiserve_error(MPISERVE_ESHAPE, "an array of more than 8 dimensions");
  if (a->rank > 0 && a->extents[a->rank - 1] < 0)
    return mpiserve_error(MPISERVE_ESHAPE,
                          "an assumed-size array has no last extent: pass a section, x(:, 1:n)");
  /* The first index runs fastest here and the last one there: nothing is transposed. */
  tensor->ndim = a->rank ? a->rank : 1;
  tensor->shape[0] = 1; /* a scalar is one row */
  for (int d = 0; d < a->rank; d++) tensor->shape[a->rank - 1 - d] = a->extents[d];
  return MPISERVE_OK;
}

static int to_tensor(const array *a, const mpiserve_spec *spec, int comes_back, parcel **parcels,
                     mpiserve_tensor *tensor) {
  int64_t block;
  int dtype = dtype_of(a), code = shape_of(a, tensor);
  if (!code && dtype < 0) code = no_dtype(a, spec);
  if (code) return code;
  tensor->name = a->name[0] ? a->name : NULL;
  tensor->dtype = as_signature(dtype, spec);
  tensor->data = a->base;
  if (!a->base || dense_dims(a, &block) == a->rank) return MPISERVE_OK;
  return pack(a, comes_back, parcels, &tensor->data);
}

static int to_tensors(int n, const array *arrays, int n_specs, const mpiserve_spec *specs,
                      int comes_back, parcel **parcels, mpiserve_tensor *tensors) {
  int code = MPISERVE_OK;
  if (n > MPISERVE_MAX_TENSORS)
    return mpiserve_error(MPISERVE_ESHAPE, "more than 16 tensors in a call");
  for (int i = 0; i < n && !code; i++)
    code = to_tensor(&arrays[i], spec_of(&arrays[i], i, n_specs, specs), comes_back, parcels,
                     &tensors[i]);
  return code;
}

/* Most arrays say by themselves which dtype they are. */
static int ambiguous(int n, const array *arrays) {
  for (int i = 0; i < n; i++) {
    int dtype = dtype_of(&arrays[i]);
    if (dtype < 0 || dtype == MPISERVE_INT8 || dtype == MPISERVE_INT16) return 1;
  }
  return 0;
}

/* Afterwards unpack() or keep() is due, also after an error. */
static int load(mpiserve_service *service, int n_inputs, const array *inputs, int n_outputs,
                const array *outputs, call *c) {
  mpiserve_description d;
  int code = MPISERVE_OK;
  c->parcels = NULL;
  d.n_inputs = d.n_outputs = 0;
  if (ambiguous(n_inputs, inputs) || ambiguous(n_outputs, outputs))
    code = mpiserve_service_describe(service, &d, NULL, NULL, NULL);
  if (!code) code = to_tensors(n_inputs, inputs, d.n_inputs, d.inputs, 0, &c->parcels, c->inputs);
  if (!code)
    code = to_tensors(n_outputs, outputs, d.n_outputs, d.outputs, 1, &c->parcels, c->outputs);
  return code;
}

/* ---- called from Fortran --------------------------------------------------------- */

/* mpiserve_fortran_array: describe any array; name may be NULL. */
void mpiserve_fortran_array(const CFI_cdesc_t *x, const char *name, array *a) {
  *a = (array){.base = x->base_addr, .bytes = (int64_t)x->elem_len, .type = x->type};
  a->rank = x->rank;
  for (int d = 0; d < x->rank && d < MPISERVE_MAX_DIMS; d++) {
    a->extents[d] = x->dim[d].extent;
    a->strides[d] = x->dim[d].sm;
  }
  snprintf(a->name, sizeof a->name, "%s", name ? name : "");
}

int mpiserve_fortran_infer(mpiserve_service *service, int n_inputs, const array *inputs,
                           int n_outputs, const array *outputs, double timeout,
                           mpiserve_stats *stats) {
  call c;
  int code = load(service, n_inputs, inputs, n_outputs, outputs, &c);
  if (!code)
    code = mpiserve_infer(service, n_inputs, c.inputs, n_outputs, c.outputs, timeout, stats);
  unpack(c.parcels, code);
  return code;
}

int mpiserve_fortran_submit(mpiserve_session *session, mpiserve_service *service, int n_inputs,
                            const array *inputs, int n_outputs, const array *outputs,
                            const mpiserve_options *options, request *r) {
  call c;
  *r = (request){session, {0}};
  int code = load(service, n_inputs, inputs, n_outputs, outputs, &c);
  if (!code)
    code = mpiserve_submit_with(service, n_inputs, c.inputs, n_outputs, c.outputs, options, &r->id);
  if (code)
    unpack(c.parcels, code);
  else if (c.parcels)
    keep(c.parcels, session, r->id.id);
  return code;
}

/* Has the request ended? MPISERVE_ESTATE: it had before, perhaps by mpiserve_fail(). */
static void end(const request *r, uint64_t id, int code) {
  if (!r->id.id || code == MPISERVE_ESTATE) unpack(take(r->session, id), code);
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

/* Requests whose outputs are sections end here, so that these are written. */
int mpiserve_fortran_close(mpiserve_session *session) {
  uint64_t id;
  while ((id = next_waiting(session))) {
    mpiserve_request r = {id};
    int code = mpiserve_wait(session, &r, MPISERVE_FOREVER, NULL);
    unpack(take(session, id), code);
  }
  return mpiserve_close(session);
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
  return code ? code
              : mpiserve_open_f(*(const MPI_Fint *)comm->base_addr, MPISERVE_SIMULATION, session);
}

int mpiserve_fortran_get_comm(mpiserve_session *session, const CFI_cdesc_t *comm) {
  int code = check_comm(comm);
  return code ? code : mpiserve_comm_f(session, (MPI_Fint *)comm->base_addr);
}

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
