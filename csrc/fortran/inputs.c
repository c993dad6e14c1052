/* inputs: the values of inputs from input() to the call. The array may not live that long: the
 * compiler makes temporaries of expressions and sections, which end with the statement or sooner.
 * So values are copied, except those of in-place memory, which is the library's own. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "arrays.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- values -------------------------------------------------------------------- */

static struct {
  uint64_t id;
  void *values;
} kept[MSF_KEPT];

static uint64_t values_keep(void *values) {
  static uint64_t last;
  pthread_mutex_lock(&lock);
  uint64_t id = ++last;
  void *dropped = kept[id % MSF_KEPT].values;
  kept[id % MSF_KEPT].id = id;
  kept[id % MSF_KEPT].values = values;
  pthread_mutex_unlock(&lock);
  free(dropped);
  return id;
}

void *msf_values_take(uint64_t id) {
  void *values = NULL;
  pthread_mutex_lock(&lock);
  if (kept[id % MSF_KEPT].id == id) {
    values = kept[id % MSF_KEPT].values;
    kept[id % MSF_KEPT].values = NULL;
  }
  pthread_mutex_unlock(&lock);
  return values;
}

void msf_values_drop(void) {
  for (int i = 0; i < MSF_KEPT; i++) {
    pthread_mutex_lock(&lock);
    void *values = kept[i].values;
    kept[i].values = NULL;
    pthread_mutex_unlock(&lock);
    free(values);
  }
}

/* ---- in-place memory ------------------------------------------------------------ */

/* The inputs of a buffer that is taken. */
typedef struct location {
  struct location *next;
  const mpiserve_session *session;
  const mpiserve_service *service;
  uint64_t buffer;
  int n;
  struct {
    const char *begin, *end;
  } inputs[MPISERVE_MAX_TENSORS];
} location;

static location *locations;

static int64_t bytes_of_row(const mpiserve_spec *spec) {
  int64_t bytes = mpiserve_dtype_size(spec->dtype);
  for (int d = 0; d < spec->ndim; d++)
    bytes *= spec->shape[d] > 0 ? spec->shape[d] : spec->max_shape[d] > 0 ? spec->max_shape[d] : 1;
  return bytes;
}

int msf_location_add(mpiserve_session *session, mpiserve_service *service,
                     const mpiserve_buffer *b) {
  mpiserve_description d;
  int code = mpiserve_service_describe(service, &d, NULL, NULL, NULL);
  location *p = code ? NULL : malloc(sizeof *p);
  if (!code && !p) code = mpiserve_error(MPISERVE_ENOMEM, "no memory for a buffer");
  if (code) return code;
  *p = (location){.session = session, .service = service, .buffer = b->id, .n = d.n_inputs};
  for (int i = 0; i < d.n_inputs; i++) {
    p->inputs[i].begin = b->inputs[i];
    p->inputs[i].end = p->inputs[i].begin + b->rows * bytes_of_row(&d.inputs[i]);
  }
  pthread_mutex_lock(&lock);
  p->next = locations;
  locations = p;
  pthread_mutex_unlock(&lock);
  return MPISERVE_OK;
}

void msf_locations_drop(const mpiserve_session *session, const mpiserve_service *service,
                        uint64_t buffer) {
  pthread_mutex_lock(&lock);
  for (location **at = &locations; *at;) {
    location *p = *at;
    if (p->session == session && (!service || (p->service == service && p->buffer == buffer))) {
      *at = p->next;
      free(p);
    } else {
      at = &p->next;
    }
  }
  pthread_mutex_unlock(&lock);
}

static int in_place(const array *a) {
  const char *end = a->base + msf_elements(a) * a->bytes;
  int found = 0;
  pthread_mutex_lock(&lock);
  for (location *p = locations; p && !found; p = p->next)
    for (int i = 0; i < p->n && !found; i++)
      found = a->base >= p->inputs[i].begin && end <= p->inputs[i].end;
  pthread_mutex_unlock(&lock);
  return found;
}

/* ---- both ------------------------------------------------------------------------ */

/* a becomes its own copy, without gaps. */
void msf_copy_values(array *a) {
  if (a->trouble || !a->base || a->rank > MPISERVE_MAX_DIMS || msf_elements(a) <= 0) return;
  if (msf_is_dense(a) && in_place(a)) return;
  char *dense = malloc((size_t)(msf_elements(a) * a->bytes));
  if (!dense) {
    a->trouble = NO_MEMORY;
    return;
  }
  msf_copy(a, dense, 0);
  a->base = dense;
  a->copy = values_keep(dense);
  int64_t stride = a->bytes;
  for (int d = 0; d < a->rank; d++) {
    a->strides[d] = stride;
    stride *= a->extents[d];
  }
}

/* The values that input() has copied now belong to this call. */
int msf_give_values(const array *a, parcel **parcels) {
  void *values = msf_values_take(a->copy);
  if (values) return msf_parcel(values, a, parcels);
  char text[MPISERVE_TEXT_SIZE];
  snprintf(text, sizeof text,
           "what input() gives is for one call: this has been used, or dropped, since input() was "
           "called %d times after it, or the last session was closed; call input() anew",
           MSF_KEPT);
  return mpiserve_error(MPISERVE_ESTATE, text);
}
