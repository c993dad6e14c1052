/* fuzz_held: what an inference rank of the random program knows: models, the rows that reach them,
 * their dimensions, and requests that are answered later. */
#ifndef FUZZ_HELD_H
#define FUZZ_HELD_H

#include "fuzz_world.h"

enum { MAX_HELD = 64 };

/* A request that is answered later. */
typedef struct held {
  mpiserve_ticket ticket;
  uint8_t *rows; /* its inputs, row by row */
  int sizes;
} held;

typedef struct model {
  const service *s;
  int64_t generation;
  int loaded, unloaded, suspended;
  int asked; /* mpiserve_change; 0: nothing */
  dice *d;
  mpiserve_engine echo;
} model;

typedef struct head {
  const world *w;
  mpiserve_session *session;
  dice d;
  int n;
  model models[MAX_SERVICES];
  int n_held;
  held held[MAX_HELD];
} head;

/* ---- what reaches the model ------------------------------------------------------------- */

static const char *hex(const uint8_t *row, size_t bytes) {
  enum { SHOWN = 24 };
  static char text[3 * SHOWN + 1];
  for (size_t i = 0; i < SHOWN && i < bytes; i++) snprintf(text + 3 * i, 4, "%02x ", row[i]);
  return text;
}

static void look_at_row(const head *h, const model *m, const uint8_t *row, int64_t at, int client) {
  if (client < 0 || h->w->roles[client] == MPISERVE_INFERENCE) {
    wrong("row %lld of a batch of '%s' is of nobody (client %d)", (long long)at, m->s->d.name,
          client);
  } else if (!row_right(row, m->s->in.row, client)) {
    wrong("row %lld of a batch of '%s' was not submitted by rank %d: %s", (long long)at,
          m->s->d.name, client, hex(row, m->s->in.row));
  }
}

static void look_at_batch(const head *h, const model *m, const mpiserve_batch *batch) {
  int32_t clients[2 * MAX_ROWS];
  uint8_t row[MAX_ROW_BYTES];
  if (batch->rows < 1 || batch->rows > m->s->d.max_batch_rows || batch->requests < 1)
    wrong("a batch of %lld rows, %d requests", (long long)batch->rows, batch->requests);
  int alone = m->s->d.rows == MPISERVE_TOGETHER || m->s->d.rows == MPISERVE_NO_ROWS;
  if (alone && batch->requests != 1)
    wrong("a batch of %d requests, whose rows belong together", batch->requests);
  memset(clients, -1, sizeof clients);
  must(mpiserve_batch_clients(h->session, clients), "batch_clients");
  for (int64_t i = 0; i < batch->rows; i++) {
    row_get(&m->s->in, (void *const *)batch->inputs, i, row);
    look_at_row(h, m, row, i, clients[i]);
  }
}

/* Where outputs may lie over inputs, a row is read before it is written. */
static void compute(const model *m, const mpiserve_batch *batch, int64_t from, int64_t to,
                    void *const *outputs) {
  uint8_t in[MAX_ROW_BYTES], out[MAX_ROW_BYTES];
  for (int64_t i = from; i < to; i++) {
    row_get(&m->s->in, (void *const *)batch->inputs, i, in);
    row_answer(m->s, in, m->generation, out);
    row_put(&m->s->out, outputs, i, out);
  }
}

/* ---- free dimensions -------------------------------------------------------------------- */

/* The model as it is for a batch, or for a held request, whose dimensions are its own. */
static const model *sized(const model *m, int sizes, model *own, service *s) {
  if (!m->s->free) return m;
  *own = *m;
  *s = *m->s;
  resize(s, sizes);
  own->s = s;
  return own;
}

/* Clients choose among these. */
static int find_sizes(const mpiserve_description *d, int64_t rows, const int64_t *shapes) {
  for (int n = 0; n <= SIZES; n++) {
    int same = 1, sizes = n < SIZES ? 3 * n : EMPTY;
    for (int i = 0; i < d->n_inputs; i++)
      for (int k = 0; k < d->inputs[i].ndim; k++)
        same &= shapes[i * MPISERVE_MAX_DIMS + k] ==
                (k < has_rows(&d->inputs[i]) ? rows : length(&d->inputs[i], k, sizes));
    if (same) return sizes;
  }
  wrong("a batch of '%s' has dimensions that nobody has submitted", d->name);
  return 0;
}

static int sizes_of(const head *h, const model *m, const mpiserve_batch *batch) {
  int64_t shapes[16 * MPISERVE_MAX_DIMS];
  must(mpiserve_batch_shapes_get(h->session, shapes), "batch_shapes_get");
  return find_sizes(&m->s->d, batch->rows, shapes);
}

static void fill_shapes(const service *s, int64_t *shapes) {
  const mpiserve_description *d = &s->d;
  for (int i = 0; i < d->n_outputs; i++)
    for (int k = has_rows(&d->outputs[i]); k < d->outputs[i].ndim; k++)
      shapes[i * MPISERVE_MAX_DIMS + k] = length(&d->outputs[i], k, s->out_sizes);
}

static void tell_shapes(const head *h, const model *m, int64_t rows, const int64_t *shapes) {
  int number = 0;
  while (h->models[number].s->number != m->s->number) number++;
  must(mpiserve_result_shapes_set(h->session, number, rows, shapes), "result_shapes_set");
}

static void tell_shape(const head *h, const model *m) {
  int64_t shapes[16 * MPISERVE_MAX_DIMS] = {0};
  fill_shapes(m->s, shapes);
  tell_shapes(h, m, 1, shapes);
}

/* ---- held requests ---------------------------------------------------------------------- */

static void own_outputs(const side *s, int64_t rows, void **outputs) {
  for (int i = 0; i < s->n; i++) outputs[i] = malloc((size_t)rows * s->bytes[i]);
}

static void free_outputs(const side *s, void **outputs) {
  for (int i = 0; i < s->n; i++) free(outputs[i]);
}

static void reply_late(head *h, const model *m, held *one) {
  void *outputs[MAX_SIDE];
  uint8_t out[MAX_ROW_BYTES];
  own_outputs(&m->s->out, one->ticket.rows, outputs);
  for (int64_t i = 0; i < one->ticket.rows; i++) {
    row_answer(m->s, one->rows + (size_t)i * m->s->in.row, m->generation, out);
    row_put(&m->s->out, outputs, i, out);
  }
  tell_shape(h, m);
  must(mpiserve_ticket_reply(h->session, &one->ticket, (const void *const *)outputs),
       "ticket_reply");
  free_outputs(&m->s->out, outputs);
}

/* Ends one that is held. It may have ended by itself: it was cancelled, or a client failed. */
static void end_held(head *h, int at) {
  held *one = &h->held[at];
  model own;
  service s;
  const model *m = sized(&h->models[one->ticket.service], one->sizes, &own, &s);
  int wanted;
  doing("end a held request of rank %d, %lld rows", one->ticket.client,
        (long long)one->ticket.rows);
  must(mpiserve_ticket_wanted(h->session, &one->ticket, &wanted), "ticket_wanted");
  if (wanted && chance(&h->d, m->s->fails))
    must(mpiserve_ticket_fail(h->session, &one->ticket, MPISERVE_EMODEL, "fuzz: a ticket"),
         "ticket_fail");
  else if (wanted)
    reply_late(h, m, one);
  if (one->ticket.id) wrong("the ticket of a request that has ended is still one");
  free(one->rows);
  *one = h->held[--h->n_held];
}

static void end_some_held(head *h, int percent, int number) {
  for (int i = h->n_held; i-- > 0;)
    if ((number < 0 || h->held[i].ticket.service == number) && chance(&h->d, percent))
      end_held(h, i);
}

static void keep(head *h, const model *m, const mpiserve_batch *batch, const uint8_t *rows,
                 const mpiserve_ticket *ticket) {
  if (!ticket->id) return;
  if (ticket->service != batch->service || ticket->row < 0 || ticket->rows < 1 ||
      ticket->row + ticket->rows > batch->rows)
    wrong("a ticket of rows %lld + %lld in a batch of %lld", (long long)ticket->row,
          (long long)ticket->rows, (long long)batch->rows);
  size_t bytes = (size_t)ticket->rows * m->s->in.row;
  held *one = &h->held[h->n_held++];
  *one = (held){*ticket, malloc(bytes), m->s->in_sizes};
  memcpy(one->rows, rows + (size_t)ticket->row * m->s->in.row, bytes);
}

static void hold(head *h, const model *m, const mpiserve_batch *batch) {
  mpiserve_ticket tickets[MAX_HELD];
  uint8_t *rows = malloc((size_t)batch->rows * m->s->in.row);
  for (int64_t i = 0; i < batch->rows; i++)
    row_get(&m->s->in, (void *const *)batch->inputs, i, rows + (size_t)i * m->s->in.row);
  must(mpiserve_batch_hold(h->session, tickets), "batch_hold");
  for (int i = 0; i < batch->requests; i++) keep(h, m, batch, rows, &tickets[i]);
  free(rows);
}

#endif
