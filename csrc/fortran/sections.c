/* sections: arrays with gaps, or whose dimensions come in another order than their memory, and the
 * dense copies of them that take part in calls. Outputs go back when their request ends. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arrays.h"

/* How many leading dimensions lie without a gap; *block is their size in bytes. */
static int dense_dims(const array *a, int64_t *block) {
  int d = 0;
  *block = a->bytes;
  while (d < a->rank && (a->extents[d] == 1 || a->strides[d] == *block)) *block *= a->extents[d++];
  return d;
}

int msf_is_dense(const array *a) {
  int64_t block;
  return dense_dims(a, &block) == a->rank;
}

int64_t msf_elements(const array *a) {
  int64_t n = 1;
  for (int d = 0; d < a->rank; d++) n *= a->extents[d];
  return n;
}

#define LINE(size) \
  case size: \
    for (int64_t i = 0; i < n; i++) memcpy(to + i * to_step, from + i * step, size); \
    return

/* n blocks. With a size that the compiler knows there is no call for each. */
static void copy_line(char *to, int64_t to_step, const char *from, int64_t step, int64_t n,
                      int64_t block) {
  switch (block) {
    LINE(1);
    LINE(2);
    LINE(4);
    LINE(8);
  }
  for (int64_t i = 0; i < n; i++) memcpy(to + i * to_step, from + i * step, (size_t)block);
}

/* Copies a section to dense memory (or back), line by line. */
void msf_copy(const array *a, char *dense, int back) {
  int64_t block, index[MPISERVE_MAX_DIMS] = {0};
  int first = dense_dims(a, &block), d = first;
  int64_t n = first < a->rank ? a->extents[first] : 1,
          step = first < a->rank ? a->strides[first] : 0;
  if (!msf_elements(a)) return;
  while (1) {
    char *at = a->base;
    for (int k = first + 1; k < a->rank; k++) at += index[k] * a->strides[k];
    if (back)
      copy_line(at, step, dense, block, n, block);
    else
      copy_line(dense, block, at, step, n, block);
    dense += n * block;
    for (d = first + 1; d < a->rank && ++index[d] == a->extents[d]; d++) index[d] = 0;
    if (d >= a->rank) return;
  }
}

int msf_parcel(void *dense, const array *a, parcel **list) {
  parcel *p = dense ? malloc(sizeof *p) : NULL;
  if (!p) {
    free(dense);
    return mpiserve_error(MPISERVE_ENOMEM, "no memory to pack a section of an array");
  }
  *p = (parcel){.next = *list, .array = *a, .dense = dense};
  *list = p;
  return MPISERVE_OK;
}

int msf_pack(const array *a, int comes_back, parcel **list, void **dense) {
  *dense = malloc((size_t)(msf_elements(a) * a->bytes) + 1);
  int code = msf_parcel(*dense, a, list);
  if (code) return code;
  (*list)->what = comes_back ? COMES_BACK : STAYS;
  if (!comes_back) msf_copy(a, *dense, 0);
  return MPISERVE_OK;
}

static int check_shape(const array *a, int i, const mpiserve_tensor *tensor) {
  char text[MPISERVE_TEXT_SIZE];
  if (a->shape && a->shape_size == tensor->ndim && msf_is_dense(a)) return MPISERVE_OK;
  snprintf(
      text, sizeof text,
      "output %d: where an output has shape, all need it, as an array of %d integers here, and "
      "are arrays without gaps",
      i + 1, (int)tensor->ndim);
  return mpiserve_error(MPISERVE_EARG, text);
}

int msf_pack_shapes(int n, const array *outputs, const mpiserve_tensor *tensors, parcel **list,
                    int64_t **shapes) {
  int wanted = 0, code = MPISERVE_OK;
  *shapes = NULL;
  for (int i = 0; i < n; i++) wanted |= outputs[i].shape != NULL;
  for (int i = 0; i < n && wanted && !code; i++) code = check_shape(&outputs[i], i, &tensors[i]);
  if (!wanted || code) return code;
  *shapes = calloc((size_t)n * MPISERVE_MAX_DIMS, sizeof **shapes);
  code = msf_parcel(*shapes, outputs, list);
  if (code) return code;
  (*list)->what = IS_SHAPE;
  (*list)->n_shapes = n;
  for (int i = 0; i < n; i++) {
    (*list)->shapes[i].to = outputs[i].shape;
    (*list)->shapes[i].size = outputs[i].shape_size;
  }
  return MPISERVE_OK;
}

/* As mpiserve_infer(), which has no options. */
int msf_infer_any(mpiserve_session *session, mpiserve_service *service, int n_inputs,
                  const mpiserve_tensor *inputs, int n_outputs, const mpiserve_tensor *outputs,
                  int64_t *shapes, double timeout, mpiserve_stats *stats) {
  mpiserve_options options = {.result_shapes = shapes};
  mpiserve_request r = {0};
  char text[MPISERVE_TEXT_SIZE];
  int code = mpiserve_submit(service, n_inputs, inputs, n_outputs, outputs, &options, &r);
  if (!code) code = mpiserve_wait(session, &r, timeout, stats);
  if (!code || !r.id) return code;
  snprintf(text, sizeof text, "%s", mpiserve_last_error());
  mpiserve_cancel(session, &r);
  return mpiserve_error(code, text);
}

/* Here the rows are last. Without free dimensions the library has written none. */
static void give_shapes(const parcel *p) {
  const int64_t *from = p->dense;
  for (int i = 0; i < p->n_shapes; i++, from += MPISERVE_MAX_DIMS)
    for (int64_t d = 0, n = p->shapes[i].size; d < n; d++) p->shapes[i].to[d] = from[n - 1 - d];
}

/* What was packed goes: outputs to where they belong, if the call went well. */
void msf_unpack(parcel *list, int code) {
  while (list) {
    parcel *p = list;
    list = p->next;
    if (code == MPISERVE_OK && p->what == COMES_BACK) msf_copy(&p->array, p->dense, 1);
    if (code == MPISERVE_OK && p->what == IS_SHAPE) give_shapes(p);
    free(p->dense);
    free(p);
  }
}

/* ---- parcels of requests that have not ended ----------------------------------- */

/* Of all sessions, each of which may be another thread's. Most programs have none. */
static parcel *waiting;
static atomic_int n_waiting;
static pthread_mutex_t waiting_lock = PTHREAD_MUTEX_INITIALIZER;

void msf_keep(parcel *list, mpiserve_session *session, uint64_t id) {
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

static parcel *take(const mpiserve_session *session, uint64_t id, int all) {
  parcel *list = NULL;
  if (!atomic_load(&n_waiting)) return NULL;
  pthread_mutex_lock(&waiting_lock);
  for (parcel **at = &waiting; *at;) {
    parcel *p = *at;
    if (p->session != session || (!all && p->id != id)) {
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

parcel *msf_take(const mpiserve_session *session, uint64_t id) { return take(session, id, 0); }

parcel *msf_take_all(const mpiserve_session *session) { return take(session, 0, 1); }

/* The first request after this number of the session that has parcels; 0: none. */
uint64_t msf_next_waiting(const mpiserve_session *session, uint64_t after) {
  uint64_t id = 0;
  if (!atomic_load(&n_waiting)) return 0;
  pthread_mutex_lock(&waiting_lock);
  for (parcel *p = waiting; p; p = p->next)
    if (p->session == session && p->id > after && (!id || p->id < id)) id = p->id;
  pthread_mutex_unlock(&waiting_lock);
  return id;
}
