/* fuzz_world: roles, services and habits, all from one seed, the same on each rank. */
#ifndef FUZZ_WORLD_H
#define FUZZ_WORLD_H

#include "fuzz.h"

/* One side of a signature. */
typedef struct side {
  int n;
  size_t bytes[MAX_SIDE], row; /* of a row: of each tensor, and of all */
} side;

typedef enum falls_to { TO_FUNCTION = 1, TO_LOCAL = 2 } falls_to;

typedef struct service {
  mpiserve_description d;
  side in, out;
  int number;
  int free;                /* its tensors have free dimensions: in and out are of the largest, or */
  int in_sizes, out_sizes; /* of these numbers, from which the dimensions follow; -1: the largest */
  int echo;                /* outputs are the inputs */
  int on[MAX_HEADS];       /* is it served there? */
  int broken;              /* head where its model could not be loaded; -1: none */
  int able;                /* replicas that can serve */
  int suspends_at;         /* head that suspends it now and then; -1: none */
  int fails, holds;        /* percent of batches */
  int falls;               /* what answers what it does not: bits of a falls_to */
  int changes;             /* its model is changed, by the first client */
  int captured;
} service;

typedef struct world {
  int heads, clients, roles[MAX_RANKS];
  int index[MAX_RANKS]; /* among the ranks of its role; of guests, larger than any of these */
  int n;
  service services[MAX_SERVICES];
  int slow, slow_us;    /* percent of batches, and how long at most */
  int backoff;          /* percent of what is held that ends after each batch */
  int operations;       /* of each client */
  int failing;          /* client that ends with an error; -1: none */
  int leaves_in_flight; /* clients close with requests in flight */
  int captured;         /* clients may record, and heads capture some services */
} world;

/* ---- signatures ------------------------------------------------------------------------- */

enum { EMPTY = -2, SIZES = 4 }; /* each free dimension is 0; others are 3 apart, from 0 */

static inline int has_rows(const mpiserve_spec *spec) { return spec->ndim && spec->shape[0] < 0; }

static inline int64_t length(const mpiserve_spec *spec, int k, int sizes) {
  if (spec->shape[k] > 0) return spec->shape[k];
  if (sizes == EMPTY) return 0;
  return sizes < 0 ? spec->max_shape[k] : 1 + sizes % spec->max_shape[k];
}

static inline size_t row_bytes(const mpiserve_spec *spec, int sizes) {
  size_t bytes = mpiserve_dtype_size(spec->dtype);
  for (int i = has_rows(spec); i < spec->ndim; i++) bytes *= (size_t)length(spec, i, sizes);
  return bytes;
}

static inline side side_of(int n, const mpiserve_spec *specs, int sizes) {
  side s = {.n = n};
  for (int i = 0; i < n; i++) s.row += s.bytes[i] = row_bytes(&specs[i], sizes);
  return s;
}

/* The sizes of the results follow from those of the inputs. */
static inline void resize(service *s, int sizes) {
  s->in_sizes = sizes;
  s->out_sizes = 0;
  int told = 0; /* do the inputs say it? */
  for (int i = 0; i < s->d.n_inputs; i++)
    for (int k = 1; k < s->d.inputs[i].ndim; k++) {
      s->out_sizes += (int)length(&s->d.inputs[i], k, sizes);
      told |= s->d.inputs[i].shape[k] < 0;
    }
  if (told && sizes == EMPTY && s->number % 2) s->out_sizes = EMPTY;
  s->in = side_of(s->d.n_inputs, s->d.inputs, s->in_sizes);
  s->out = side_of(s->d.n_outputs, s->d.outputs, s->out_sizes);
}

/* The last dimension of a tensor becomes free. */
static inline int free_last(int n, mpiserve_spec *specs) {
  int found = 0;
  for (int i = 0; i < n; i++) {
    int k = specs[i].ndim - 1;
    if (k < 1) continue;
    specs[i].max_shape[k] = specs[i].shape[k];
    specs[i].shape[k] = -1;
    found = 1;
  }
  return found;
}

static inline void make_spec(dice *d, mpiserve_spec *spec, const char *letter, int i, int rows) {
  int left = log_pick(d, ELEMENTS), first = rows < MPISERVE_NO_ROWS;
  snprintf(spec->name, sizeof spec->name, "%s%d", letter, i);
  spec->dtype = pick(d, MPISERVE_COMPLEX128 + 1);
  spec->ndim = first + pick(d, 4);
  spec->shape[0] = first ? -1 : 0;
  for (int k = first; k < spec->ndim; left /= (int)spec->shape[k++])
    spec->shape[k] = k == spec->ndim - 1 ? left : log_pick(d, left);
}

/* Without a dimension that could be free it is a service without rows. */
static inline void make_ragged(service *s) {
  s->echo = s->d.overwrites = 0;
  s->free = free_last(s->d.n_inputs, s->d.inputs);
  if (s->free) free_last(s->d.n_outputs, s->d.outputs);
  if (!s->free) s->d.rows = MPISERVE_NO_ROWS;
}

/* Outputs of an echo, or of a service that overwrites, are as its inputs. */
static inline void make_signature(dice *d, service *s) {
  s->d.n_inputs = 1 + pick(d, MAX_SIDE);
  s->d.n_outputs = 1 + pick(d, MAX_SIDE);
  s->echo = chance(d, 15);
  s->d.overwrites = chance(d, s->echo ? 50 : 10);
  s->d.rows = (int32_t)ANY_OF(d, MPISERVE_INDEPENDENT, MPISERVE_INDEPENDENT, MPISERVE_INDEPENDENT,
                              MPISERVE_TOGETHER, MPISERVE_NO_ROWS, MPISERVE_RAGGED);
  for (int i = 0; i < s->d.n_inputs; i++) make_spec(d, &s->d.inputs[i], "x", i, s->d.rows);
  for (int i = 0; i < s->d.n_outputs; i++) make_spec(d, &s->d.outputs[i], "y", i, s->d.rows);
  if (s->d.rows == MPISERVE_RAGGED) make_ragged(s);
  if (s->echo || s->d.overwrites) {
    s->d.n_outputs = s->d.n_inputs;
    memcpy(s->d.outputs, s->d.inputs, sizeof s->d.outputs);
  }
  if (!s->echo && !s->d.overwrites && s->d.rows < MPISERVE_NO_ROWS && chance(d, 25))
    s->free = free_last(s->d.n_inputs, s->d.inputs) + free_last(s->d.n_outputs, s->d.outputs);
  s->in_sizes = s->out_sizes = -1;
  s->in = side_of(s->d.n_inputs, s->d.inputs, -1);
  s->out = side_of(s->d.n_outputs, s->d.outputs, -1);
}

/* ---- limits ----------------------------------------------------------------------------- */

static inline void make_limits(dice *d, service *s) {
  size_t row = s->in.row + s->out.row, most = BATCH_BYTES / row;
  int whole = s->d.rows == MPISERVE_NO_ROWS;
  int64_t rows = log_pick(d, most < MAX_ROWS ? (int)most : MAX_ROWS);
  s->d.max_batch_rows = rows = whole ? 1 : rows;
  s->d.allow_empty = (!whole || s->free) && chance(d, 30);
  int64_t pool = (int64_t)ANY_OF(d, 0, 2, 2, 3, 8) * rows;
  s->d.pool_bytes = (pool ? pool + pick(d, (int)rows) : 0) * (int64_t)row;
  s->d.max_delay_ns = (int64_t)ANY_OF(d, 0, 1e5, 2e6, 2e7);
  s->d.stickiness = ANY_OF(d, 0, 0.5, 1);
  s->d.max_queue_rows = chance(d, 50) ? 0 : log_pick(d, 2 * (int)rows);
  s->d.on_full = pick(d, 2);
  s->d.reproducible = !s->d.max_queue_rows && s->d.max_delay_ns && chance(d, 25);
  int keeps = s->d.rows == MPISERVE_INDEPENDENT && !s->free && !s->d.overwrites;
  if (keeps && !s->d.reproducible && chance(d, 30)) s->d.cache_rows = log_pick(d, 2 * AGAIN);
}

static inline void make_habits(dice *d, service *s, int heads) {
  int both = s->on[0] && s->on[1];
  s->broken = both && chance(d, 15) ? pick(d, heads) : -1;
  s->able = both && s->broken < 0 ? 2 : 1;
  s->fails = (int)ANY_OF(d, 0, 0, 5, 20);
  s->holds = (int)ANY_OF(d, 0, 0, 30, 80);
  s->changes = chance(d, 30);
  s->falls = (int)ANY_OF(d, 0, 0, 0, TO_FUNCTION, TO_LOCAL, TO_FUNCTION | TO_LOCAL);
  if (s->free) s->falls = 0; /* such services have none */
  s->suspends_at =
      s->broken < 0 && chance(d, both ? 40 : 5) ? (both ? pick(d, heads) : s->on[1]) : -1;
}

/* Its local model is this program: see fuzz_local.h. */
static inline void make_local(dice *d, service *s, uint64_t seed, int ranks) {
  s->d.local_timeout = ANY_OF(d, 0.02, 0.1, 0.3);
  if (s->falls & TO_LOCAL)
    snprintf(s->d.local, sizeof s->d.local, "/proc/self/exe\nlocal\n%llu\n%d\n%d",
             (unsigned long long)seed, ranks, s->number);
}

/* ---- the world -------------------------------------------------------------------------- */

/* Every head serves something. */
static inline void place_services(dice *d, world *w) {
  int served[MAX_HEADS] = {0};
  for (int i = 0; i < w->n; i++)
    for (int h = 0, only = pick(d, w->heads + 1); h < w->heads; h++)
      served[h] += w->services[i].on[h] = only == h || only == w->heads;
  for (int h = 0; h < w->heads; h++)
    if (!served[h]) w->services[pick(d, w->n)].on[h] = 1;
}

/* One of the clients is a gateway or a trainer. */
static inline void make_guest(dice *d, world *w, int ranks) {
  int r = pick(d, ranks);
  while (w->roles[r] != MPISERVE_SIMULATION) r = (r + 1) % ranks;
  w->roles[r] = chance(d, 50) ? MPISERVE_GATEWAY : MPISERVE_TRAINER;
  w->clients--;
}

static inline void make_roles(dice *d, world *w, int ranks) {
  w->heads = ranks > 2 ? 1 + pick(d, MAX_HEADS) : 1;
  w->clients = ranks - w->heads;
  for (int left = w->heads; left > 0;) {
    int *role = &w->roles[pick(d, ranks)];
    left -= *role == MPISERVE_SIMULATION;
    *role = MPISERVE_INFERENCE;
  }
  if (w->clients > 1 && chance(d, 40)) make_guest(d, w, ranks);
  for (int r = 0, n[] = {0, 0, MAX_RANKS, MAX_RANKS}; r < ranks; r++)
    w->index[r] = n[w->roles[r]]++;
}

static inline world make_world(uint64_t seed, int ranks) {
  dice d = {mix(seed)};
  world w = {.n = 1 + pick(&d, MAX_SERVICES)};
  make_roles(&d, &w, ranks);
  place_services(&d, &w);
  for (int i = 0; i < w.n; i++) {
    service *s = &w.services[i];
    s->number = i;
    snprintf(s->d.name, sizeof s->d.name, "service %d", i);
    make_signature(&d, s);
    make_limits(&d, s);
    make_habits(&d, s, w.heads);
    make_local(&d, s, seed, ranks);
  }
  w.slow = (int)ANY_OF(&d, 0, 10, 40);
  w.slow_us = (int)ANY_OF(&d, 200, 2000, 8000);
  w.backoff = (int)ANY_OF(&d, 3, 30, 60);
  w.operations = 100 + pick(&d, 200);
  w.failing = chance(&d, 15) ? pick(&d, w.clients) : -1;
  w.leaves_in_flight = chance(&d, 50);
  w.captured = chance(&d, 60);
  for (int i = 0; i < w.n; i++)
    w.services[i].captured = w.captured && !w.services[i].free && chance(&d, 70);
  return w;
}

/* Rows that this rank has recorded; that are in its capture; that found no room there. */
static struct {
  int64_t sent, seen, dropped;
} pairs;

/* ---- rows of a service ------------------------------------------------------------------ */

static inline void row_get(const side *s, void *const *data, int64_t at, uint8_t *row) {
  for (int i = 0; i < s->n; row += s->bytes[i++])
    memcpy(row, (uint8_t *)data[i] + (size_t)at * s->bytes[i], s->bytes[i]);
}

static inline void row_put(const side *s, void *const *data, int64_t at, const uint8_t *row) {
  for (int i = 0; i < s->n; row += s->bytes[i++])
    memcpy((uint8_t *)data[i] + (size_t)at * s->bytes[i], row, s->bytes[i]);
}

/* Where row number at lies, if rows of these sizes lie side by side. */
static inline void point(const side *s, void *const *base, int64_t at, void **data) {
  for (int i = 0; i < s->n; i++) data[i] = (uint8_t *)base[i] + (size_t)at * s->bytes[i];
}

static inline void rows_set(const side *s, void *const *data, int64_t at, int64_t rows, int byte) {
  for (int i = 0; i < s->n; i++)
    memset((uint8_t *)data[i] + (size_t)at * s->bytes[i], byte, (size_t)rows * s->bytes[i]);
}

/* The model: bytes of the input row, in another order, changed by place and generation. */
static inline void row_answer(const service *s, const uint8_t *in, int64_t generation,
                              uint8_t *out) {
  for (size_t j = 0; j < s->out.row; j++) {
    int from = s->in.row ? in[(5 * j + j / s->in.row) % s->in.row] : 0;
    out[j] = (uint8_t)((size_t)from ^ (31 * j + 113 * (size_t)generation + 7 * (size_t)s->number));
  }
  if (s->echo) memcpy(out, in, s->out.row);
}

#endif
