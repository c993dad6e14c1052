/* fuzz_record: the capture of an inference rank of the random program: what clients record, and
 * answers of models. Nothing is lost between those who record and those who read. */
#ifndef FUZZ_RECORD_H
#define FUZZ_RECORD_H

#include "base/ring.h"
#include "fuzz_held.h"

enum { RING_BYTES = 4 << 20 };

static _Alignas(MSI_RING_LINE) uint8_t ring_memory[RING_BYTES];
static msi_ring ring;

/* ---- pairs ------------------------------------------------------------------------------- */

static const uint8_t *find_side(const side *s, const uint8_t *at, uint32_t rows, void **data) {
  for (int i = 0; i < s->n; at += rows * s->bytes[i++]) data[i] = (void *)at;
  return at;
}

static int is_pair(const service *s, const uint8_t *in, const uint8_t *out, const msi_record *r) {
  uint8_t want[MAX_ROW_BYTES];
  int is_gone = s->d.overwrites && !s->echo; /* its results were where the inputs are */
  if (r->source == MSI_OF_MODEL && is_gone) return 1;
  row_answer(s, in, r->source == MSI_OF_PHYSICS ? r->step : r->generation, want);
  return row_right(in, s->in.row, r->rank) && !memcmp(want, out, s->out.row);
}

static void look_at_record(const head *h, const msi_record *r) {
  const service *s = h->models[r->service].s;
  uint8_t in[MAX_ROW_BYTES], out[MAX_ROW_BYTES];
  void *inputs[MAX_SIDE], *outputs[MAX_SIDE];
  const uint8_t *at = find_side(&s->in, (const uint8_t *)(r + 1), r->rows, inputs);
  find_side(&s->out, at, r->rows, outputs);
  for (uint32_t i = 0; i < r->rows; i++) {
    row_get(&s->in, inputs, i, in);
    row_get(&s->out, outputs, i, out);
    if (!is_pair(s, in, out, r))
      wrong("captured row %u of %u of '%s', of rank %d, source %u, step %lld: %s", i, r->rows,
            s->d.name, r->rank, r->source, (long long)r->step, hex(in, s->in.row));
  }
  if (!s->captured) wrong("rows of '%s' are captured", s->d.name);
  if (r->source == MSI_OF_PHYSICS) pairs.seen += r->rows;
}

/* ---- the capture --------------------------------------------------------------------------- */

static void capture(const head *h) {
  mpiserve_capture wanted = {.memory = ring_memory, .bytes = RING_BYTES, .reader = -1, .share = 1};
  memset(ring_memory, 0, sizeof ring_memory);
  msi_ring_open(&ring, ring_memory, RING_BYTES);
  for (int i = 0; i < h->n; i++)
    if (h->models[i].s->captured) must(mpiserve_capture_set(h->session, i, &wanted), "capture_set");
}

static void drain(const head *h) {
  const msi_record *r;
  while (h->w->captured && (r = msi_ring_next(&ring))) {
    if (r->rows) look_at_record(h, r);
    msi_ring_take(&ring, r);
  }
}

/* No more comes. A reader that is slow costs rows. */
static void end_capture(const head *h) {
  drain(h);
  if (h->w->captured) pairs.dropped = (int64_t)atomic_load(&ring.shared->dropped);
}

/* All ranks have closed. A client that failed may have taken what it recorded with it. */
static void compare_pairs(const world *w) {
  int64_t all[3] = {pairs.sent, pairs.seen, pairs.dropped};
  MPI_Allreduce(MPI_IN_PLACE, all, 3, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
  if (!me.rank && w->failing < 0 && !all[2] && all[0] != all[1])
    wrong("%lld rows were recorded, %lld of them are captured", (long long)all[0],
          (long long)all[1]);
}

#endif
