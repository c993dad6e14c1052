/* fuzz_ragged: batches of the random program in which each row is a request with dimensions of its
 * own. */
#ifndef FUZZ_RAGGED_H
#define FUZZ_RAGGED_H

#include <unistd.h>

#include "fuzz_held.h"

/* One row of such a batch, as a batch of one row, and what it is for the model. */
typedef struct ragged_row {
  model own;
  service s;
  mpiserve_batch batch;
} ragged_row;

static int fail(head *h) {
  int code = chance(&h->d, 50) ? MPISERVE_EMODEL : -1000 - pick(&h->d, 30000);
  return mpiserve_batch_fail(h->session, code, "fuzz: a batch");
}

/* Rows lie as far apart as the largest. */
static void view_row(const model *m, const mpiserve_batch *batch, int64_t row, ragged_row *r) {
  r->batch = (mpiserve_batch){.rows = 1, .requests = 1, .service = batch->service};
  point(&m->s->in, (void *const *)batch->inputs, row, (void **)r->batch.inputs);
  point(&m->s->out, batch->outputs, row, r->batch.outputs);
}

static void look_at_ragged(const head *h, const model *m, const mpiserve_batch *batch,
                           ragged_row *rows) {
  static int64_t shapes[MAX_ROWS * MAX_SIDE * MPISERVE_MAX_DIMS];
  int32_t clients[MAX_ROWS];
  uint8_t row[MAX_ROW_BYTES];
  const size_t step = (size_t)m->s->d.n_inputs * MPISERVE_MAX_DIMS;
  must(mpiserve_batch_shapes_get(h->session, shapes), "batch_shapes_get");
  must(mpiserve_batch_clients(h->session, clients), "batch_clients");
  for (int64_t i = 0; i < batch->rows; i++) {
    ragged_row *r = &rows[i];
    sized(m, find_sizes(&m->s->d, 1, shapes + (size_t)i * step), &r->own, &r->s);
    view_row(m, batch, i, r);
    row_get(&r->s.in, (void *const *)r->batch.inputs, 0, row);
    look_at_row(h, &r->own, row, i, clients[i]);
  }
}

static void hold_ragged(head *h, const mpiserve_batch *batch, const ragged_row *rows) {
  mpiserve_ticket tickets[MAX_HELD];
  uint8_t *copies[MAX_HELD];
  for (int i = 0; i < batch->requests; i++) {
    copies[i] = malloc(rows[i].s.in.row);
    row_get(&rows[i].s.in, (void *const *)rows[i].batch.inputs, 0, copies[i]);
  }
  must(mpiserve_batch_hold(h->session, tickets), "batch_hold");
  for (int i = 0; i < batch->requests; i++) {
    const mpiserve_ticket *t = &tickets[i];
    if (t->row < 0 || t->row >= batch->rows || t->rows != 1)
      wrong("a ticket of row %lld of %lld", (long long)t->row, (long long)batch->rows);
    else if (t->id)
      h->held[h->n_held++] = (held){*t, copies[t->row], rows[t->row].s.in_sizes};
    if (!t->id) free(copies[t->row]);
  }
}

static void reply_ragged(head *h, const model *m, const mpiserve_batch *batch,
                         const ragged_row *rows) {
  static int64_t shapes[MAX_ROWS * MAX_SIDE * MPISERVE_MAX_DIMS];
  const void *const *outputs = (const void *const *)batch->outputs;
  for (int64_t i = 0; i < batch->rows; i++) {
    size_t at = (size_t)i * (size_t)m->s->d.n_outputs * MPISERVE_MAX_DIMS;
    fill_shapes(&rows[i].s, shapes + at);
    compute(&rows[i].own, &rows[i].batch, 0, 1, rows[i].batch.outputs);
  }
  tell_shapes(h, m, batch->rows, shapes);
  if (chance(&h->d, 30))
    must(mpiserve_batch_reply_rows(h->session, pick(&h->d, (int)batch->rows + 1), outputs),
         "reply_rows");
  must(mpiserve_batch_reply(h->session, outputs), "batch_reply");
}

static void answer_ragged(head *h, const model *m, const mpiserve_batch *batch) {
  static ragged_row rows[MAX_ROWS];
  doing("answer a ragged batch of '%s': %d requests", m->s->d.name, batch->requests);
  if (batch->rows < 1 || batch->rows > m->s->d.max_batch_rows || batch->requests != batch->rows) {
    wrong("a batch of %lld rows, %d requests", (long long)batch->rows, batch->requests);
    return;
  }
  look_at_ragged(h, m, batch, rows);
  if (chance(&h->d, h->w->slow)) usleep((unsigned)pick(&h->d, h->w->slow_us));
  if (m->unloaded)
    must(mpiserve_batch_fail(h->session, MPISERVE_EMODEL, "fuzz: unloaded"), "batch_fail");
  else if (chance(&h->d, m->s->fails))
    must(fail(h), "batch_fail");
  else if (h->n_held + batch->requests <= MAX_HELD && chance(&h->d, m->s->holds))
    hold_ragged(h, batch, rows);
  else
    reply_ragged(h, m, batch, rows);
}

#endif
