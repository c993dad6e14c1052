/* fuzz_asked: a request of the random program, and the memory that it uses: of its own, or rows
 * of buffers. */
#ifndef FUZZ_ASKED_H
#define FUZZ_ASKED_H

#include "fuzz_world.h"

enum { MAX_ASKED = 14, MAX_TAKEN = 10 };

/* A buffer. Inputs of several requests may share rows, outputs may not. */
typedef struct taken {
  int used, number; /* of the service */
  mpiserve_buffer b;
  int ins[MAX_ROWS], outs[MAX_ROWS]; /* requests that have the row as input, as output */
  int spoilt[MAX_ROWS];              /* a head may be at it still: not to be used again */
} taken;

typedef struct asked {
  enum { FREE, ALIVE, OVER } state; /* over: nobody may write to its outputs */
  const service *s;
  service sized; /* with the sizes of the request, if dimensions are free */
  int64_t rows;
  void *in[MAX_SIDE], *out[MAX_SIDE];
  uint8_t *own, *copy; /* memory that is not in a buffer; its inputs row by row */
  taken *in_buffer, *out_buffer;
  int64_t in_at, out_at; /* first rows there */
  double deadline;
  int late;      /* it may end before the head is done with it */
  int64_t least; /* generation */
  mpiserve_request request;
  uint64_t id; /* that it had */
} asked;

static const char *name_of(const asked *a) {
  static char text[200];
  snprintf(text, sizeof text, "request %llx of '%s', %lld rows, %s to %s, deadline %g s",
           (unsigned long long)a->request.id, a->s->d.name, (long long)a->rows,
           a->in_buffer ? "buffer" : "own", a->out_buffer ? "buffer" : "own", a->deadline);
  return text;
}

/* ---- rows of buffers -------------------------------------------------------------------- */

static int64_t sum(const int *counts, int64_t from, int64_t rows) {
  int64_t n = 0;
  for (int64_t i = from; i < from + rows; i++) n += counts[i];
  return n;
}

static void count(int *counts, int64_t from, int64_t rows, int by) {
  for (int64_t i = from; i < from + rows; i++) counts[i] += by;
}

/* Where outputs overwrite inputs, what is one's output may be nobody's input. */
static int may_be_input(const service *s, const taken *t, int64_t at, int64_t rows) {
  if (sum(t->spoilt, at, rows)) return 0;
  return !s->d.overwrites || !(sum(t->ins, at, rows) + sum(t->outs, at, rows));
}

static int may_be_output(const service *s, const taken *t, int64_t at, int64_t rows) {
  if (sum(t->outs, at, rows) + sum(t->spoilt, at, rows)) return 0;
  return !s->d.overwrites || !sum(t->ins, at, rows);
}

/* A buffer of the service with so many rows, or NULL. */
static taken *find_taken(dice *d, taken *all, const service *s, int64_t rows) {
  for (int i = 0, from = pick(d, MAX_TAKEN); i < MAX_TAKEN; i++) {
    taken *t = &all[(from + i) % MAX_TAKEN];
    if (t->used && t->number == s->number && t->b.rows >= rows) return t;
  }
  return NULL;
}

/* Anywhere, or so that requests of this size touch or have the same rows. */
static int64_t find_at(dice *d, const asked *a, const taken *t) {
  if (!a->rows || chance(d, 50)) return pick(d, (int)(t->b.rows - a->rows) + 1);
  return a->rows * pick(d, (int)(t->b.rows / a->rows));
}

static void put_input(asked *a, taken *t, int64_t at) {
  if (!may_be_input(a->s, t, at, a->rows)) return;
  a->in_buffer = t;
  a->in_at = at;
  point(&a->s->in, t->b.inputs, at, a->in);
}

static void place_input(dice *d, asked *a, taken *t) {
  if (t) put_input(a, t, find_at(d, a, t));
}

static void place_output(dice *d, asked *a, taken *t) {
  if (!t) return;
  int same = t == a->in_buffer && (a->s->d.overwrites || chance(d, 50));
  int64_t at = same ? a->in_at : find_at(d, a, t);
  if (!may_be_output(a->s, t, at, a->rows)) return;
  a->out_buffer = t;
  a->out_at = at;
  point(&a->s->out, t->b.outputs, at, a->out);
}

/* ---- begin ------------------------------------------------------------------------------ */

static void place_own(asked *a) {
  size_t in = (size_t)a->rows * a->s->in.row, out = (size_t)a->rows * a->s->out.row;
  a->copy = malloc(in + 1); /* not NULL without rows either */
  a->own = malloc(in + out + 1);
  uint8_t *at = a->own;
  for (int i = 0; i < a->s->in.n && !a->in_buffer; at += (size_t)a->rows * a->s->in.bytes[i++])
    a->in[i] = at;
  for (int i = 0; i < a->s->out.n && !a->out_buffer; at += (size_t)a->rows * a->s->out.bytes[i++])
    a->out[i] = at;
}

/* Where answers are kept, rows come again. */
static uint64_t next_number(const asked *a, uint64_t *number) {
  uint64_t next = ++*number;
  return a->s->d.cache_rows ? mix(next) % AGAIN : next;
}

/* Rows that other requests use are left as they are: those are asked twice. */
static void fill_inputs(asked *a, uint64_t *number) {
  uint8_t row[MAX_ROW_BYTES];
  for (int64_t i = 0; i < a->rows; i++) {
    int shared = a->in_buffer && a->in_buffer->ins[a->in_at + i];
    row_make(row, a->s->in.row, me.rank, next_number(a, number));
    if (!shared) row_put(&a->s->in, a->in, i, row);
    row_get(&a->s->in, a->in, i, a->copy + (size_t)i * a->s->in.row);
  }
}

static void fill(asked *a, uint64_t *number) {
  int over = a->s->d.overwrites && a->in_buffer && a->in_buffer == a->out_buffer;
  if (!over) rows_set(&a->s->out, a->out, 0, a->rows, UNWRITTEN);
  fill_inputs(a, number);
  if (a->in_buffer) count(a->in_buffer->ins, a->in_at, a->rows, 1);
  if (a->out_buffer) count(a->out_buffer->outs, a->out_at, a->rows, 1);
}

/* ---- end -------------------------------------------------------------------------------- */

static void leave_inputs(asked *a) {
  if (a->in_buffer) count(a->in_buffer->ins, a->in_at, a->rows, -1);
  a->in_buffer = NULL;
}

static void leave_outputs(asked *a) {
  if (a->out_buffer) count(a->out_buffer->outs, a->out_at, a->rows, -1);
  a->out_buffer = NULL;
}

static void forget(asked *a) {
  leave_inputs(a);
  leave_outputs(a);
  free(a->own);
  free(a->copy);
  *a = (asked){.state = FREE};
}

/* It has ended without an answer. All of its tensors may be used again. */
static void close_case(asked *a) {
  leave_inputs(a);
  rows_set(&a->s->out, a->out, 0, a->rows, ENDED);
  a->state = OVER;
}

/* The head may not know yet that it has ended: rows of buffers are not to be used again. */
static void spoil(asked *a) {
  if (a->in_buffer) count(a->in_buffer->spoilt, a->in_at, a->rows, 1);
  if (a->out_buffer) count(a->out_buffer->spoilt, a->out_at, a->rows, 1);
}

static void give_up(asked *a) {
  a->request.id = 0;
  spoil(a);
  if (a->out_buffer)
    forget(a);
  else
    close_case(a);
}

/* Has somebody written to it since? */
static void check_over(const asked *a) {
  uint8_t row[MAX_ROW_BYTES];
  for (int64_t i = 0; i < a->rows; i++) {
    row_get(&a->s->out, a->out, i, row);
    for (size_t j = 0; j < a->s->out.row; j++)
      if (row[j] != ENDED) {
        wrong("outputs were written after the request has ended, row %lld: %s", (long long)i,
              name_of(a));
        return;
      }
  }
}

/* ---- answers ---------------------------------------------------------------------------- */

/* Has it more rows than a batch? Then its pieces may be answered by different generations. */
static int is_cut(const asked *a) { return a->rows > a->s->d.max_batch_rows; }

/* Is a row the answer of the model of a generation? */
static int is_right(const asked *a, int64_t i, int64_t generation) {
  uint8_t want[MAX_ROW_BYTES], got[MAX_ROW_BYTES];
  row_answer(a->s, a->copy + (size_t)i * a->s->in.row, generation, want);
  row_get(&a->s->out, a->out, i, got);
  return !memcmp(want, got, a->s->out.row);
}

static int64_t right_rows(const asked *a, int64_t generation) {
  int64_t n = 0;
  for (int64_t i = 0; i < a->rows; i++) n += is_right(a, i, generation);
  return n;
}

static int untouched(const asked *a) {
  uint8_t row[MAX_ROW_BYTES];
  for (int64_t i = 0; i < a->rows; i++) {
    row_get(&a->s->out, a->out, i, row);
    for (size_t j = 0; j < a->s->out.row; j++)
      if (row[j] != UNWRITTEN) return 0;
  }
  return 1;
}

enum { MOST = 100 }; /* generations */

static int is_answered_in_pieces(const asked *a) {
  for (int64_t i = 0; i < a->rows; i++) {
    int64_t g = 1;
    while (g < MOST && !is_right(a, i, g)) g++;
    if (g == MOST) return 0;
  }
  return 1;
}

/* generation: what the statistics say; 0: any. */
static int is_answered(const asked *a, int64_t generation) {
  if (is_cut(a)) return is_answered_in_pieces(a);
  if (generation) return right_rows(a, generation) == a->rows;
  for (int64_t g = 1; g < MOST; g++)
    if (right_rows(a, g) == a->rows) return 1;
  return 0;
}

static void check_inputs(const asked *a) {
  uint8_t row[MAX_ROW_BYTES];
  for (int64_t i = 0; i < a->rows && !a->s->d.overwrites; i++) {
    row_get(&a->s->in, a->in, i, row);
    if (!memcmp(row, a->copy + (size_t)i * a->s->in.row, a->s->in.row)) continue;
    wrong("inputs were changed, row %lld: %s", (long long)i, name_of(a));
    return;
  }
}

static void check_answer(const asked *a, int64_t generation) {
  check_inputs(a);
  if (is_answered(a, generation)) return;
  wrong("%lld of %lld rows are right: %s", (long long)right_rows(a, generation ? generation : 1),
        (long long)a->rows, name_of(a));
}

#endif
