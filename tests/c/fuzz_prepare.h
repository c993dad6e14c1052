/* fuzz_prepare: what a simulation rank of the random program makes before it calls. */
#ifndef FUZZ_PREPARE_H
#define FUZZ_PREPARE_H

#include "fuzz_end.h"

static asked *spare(client *c) {
  for (int i = 0; i < MAX_ASKED; i++)
    if (c->asked[i].state == FREE) return &c->asked[i];
  return NULL;
}

static asked *one_that(client *c, int state) {
  for (int i = 0, from = pick(&c->d, MAX_ASKED); i < MAX_ASKED; i++)
    if (c->asked[(from + i) % MAX_ASKED].state == (unsigned)state)
      return &c->asked[(from + i) % MAX_ASKED];
  return NULL;
}

static void begin_at(client *c, asked *a, const service *s, int64_t rows) {
  *a = (asked){.state = ALIVE, .s = s, .rows = rows, .least = c->least[s->number]};
  if (!s->free) return;
  a->sized = *s;
  int sizes = 3 * pick(&c->d, SIZES);
  resize(&a->sized, s->d.allow_empty && chance(&c->d, 20) ? EMPTY : sizes);
  a->s = &a->sized;
}

static asked *begin(client *c, const service *s, int64_t rows) {
  asked *a = spare(c);
  if (a) begin_at(c, a, s, rows);
  return a;
}

static int64_t some_rows(client *c, const service *s) {
  int may_be_cut = s->d.rows == MPISERVE_INDEPENDENT && !s->free && chance(&c->d, 20);
  if (s->d.rows == MPISERVE_RAGGED) return 1;
  if (s->d.allow_empty && chance(&c->d, 15)) return 0;
  return log_pick(&c->d, (int)s->d.max_batch_rows * (may_be_cut ? 4 : 1));
}

static asked *prepare(client *c) {
  const service *s = &c->w->services[pick(&c->d, c->w->n)];
  asked *a = begin(c, s, some_rows(c, s));
  if (!a) return NULL;
  int in_place = a->rows && !s->free;
  if (in_place && chance(&c->d, 50)) place_input(&c->d, a, find_taken(&c->d, c->taken, s, a->rows));
  if (in_place && chance(&c->d, 50))
    place_output(&c->d, a, find_taken(&c->d, c->taken, s, a->rows));
  place_own(a);
  fill(a, &c->number);
  return a;
}

/* What is handed over with a request. */
typedef struct handed {
  mpiserve_service *service;
  int n_in, n_out;
  mpiserve_tensor in[MAX_SIDE], out[MAX_SIDE];
} handed;

/* A scalar may be given as an array of one value, and no rows as no memory. */
static mpiserve_tensor tensor_of(client *c, const mpiserve_spec *spec, void *data, int64_t rows) {
  mpiserve_tensor t = {NULL, data, spec->dtype, spec->ndim, {1}};
  memcpy(t.shape, spec->shape, (size_t)spec->ndim * sizeof *t.shape);
  if (has_rows(spec)) t.shape[0] = rows;
  if (!rows && chance(&c->d, 50)) t.data = NULL;
  if (!spec->ndim) t.ndim = chance(&c->d, 50);
  return t;
}

/* By position or, in another order, by name. */
static void tensors_of(client *c, int n, const mpiserve_spec *specs, int sizes, void *const *data,
                       int64_t rows, mpiserve_tensor *tensors) {
  int named = chance(&c->d, 30);
  for (int i = 0; i < n; i++) {
    mpiserve_tensor *t = &tensors[named ? n - 1 - i : i];
    *t = tensor_of(c, &specs[i], data[i], rows);
    for (int k = has_rows(&specs[i]); k < specs[i].ndim; k++)
      t->shape[k] = length(&specs[i], k, sizes);
    if (named) t->name = specs[i].name;
  }
}

static handed hand(client *c, const asked *a) {
  const mpiserve_description *d = &a->s->d;
  handed x = {c->services[a->s->number], d->n_inputs, d->n_outputs, {{0}}, {{0}}};
  tensors_of(c, x.n_in, d->inputs, a->s->in_sizes, a->in, a->rows, x.in);
  tensors_of(c, x.n_out, d->outputs, a->s->out_sizes, a->out, a->rows, x.out);
  return x;
}

#endif
