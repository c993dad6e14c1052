#include "protocol/slot.h"

#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "base/error.h"

static size_t align_up(size_t n) { return (n + MSI_ALIGN - 1) / MSI_ALIGN * MSI_ALIGN; }

static const size_t POOL_BYTES = (size_t)256 << 20; /* unless the description says more */

uint64_t msi_layout_most_rows(const msi_layout *layout) {
  return 2 * MSI_SLOTS * (uint64_t)layout->lanes * (uint64_t)layout->max_rows;
}

static uint32_t slab_rows(const msi_layout *layout, const mpiserve_description *description) {
  size_t max_rows = (size_t)layout->max_rows;
  size_t pool_bytes = description->pool_bytes ? (size_t)description->pool_bytes : POOL_BYTES;
  size_t row = layout->inputs.total_row_bytes;
  if (!description->overwrites) row += layout->outputs.total_row_bytes;
  size_t most = msi_layout_most_rows(layout), least = 2 * max_rows;
  size_t fits = row ? pool_bytes / row : most;
  size_t rows = most < fits ? most : fits > least ? fits : least;
  return rows < UINT32_MAX ? (uint32_t)rows : UINT32_MAX;
}

size_t msi_side_lay_out(const msi_side *side, uint32_t rows, size_t at, size_t *offsets) {
  for (int i = 0; i < side->n; i++) {
    offsets[i] = at;
    at = align_up(at + rows * side->row_bytes[i]);
  }
  return at;
}

/* Before anything is multiplied. */
static int check_bytes(const msi_layout *layout, const mpiserve_description *d) {
  size_t row = layout->inputs.total_row_bytes + layout->outputs.total_row_bytes;
  /* A service that has failed has no tensors, and perhaps no rows. */
  if (!row || !layout->slab_rows || row <= MSI_MOST_BYTES / layout->slab_rows) return MPISERVE_OK;
  return msi_error(MPISERVE_ECONFIG,
                   "service '%s': its memory is %u rows of %zu bytes, more than 2^%d bytes: lower "
                   "max_batch_rows or pool_bytes",
                   d->name, layout->slab_rows, row, MSI_MOST_BITS);
}

static int overlay(msi_layout *layout, const char *service) {
  const msi_side *in = &layout->inputs, *out = &layout->outputs;
  for (int i = 0; i < out->n; i++) {
    if (out->n_hidden || i >= in->n || in->row_bytes[i] != out->row_bytes[i])
      return msi_error(MPISERVE_ECONFIG,
                       "service '%s': outputs that overwrite the inputs, as those of echo, need "
                       "rows of the same sizes, and no uncertainty",
                       service);
    layout->outputs_at[i] = layout->inputs_at[i];
  }
  return MPISERVE_OK;
}

/* Results that take the place of inputs, local models and the uncertainty have fixed shapes. */
static int check_free(msi_layout *layout, const mpiserve_description *d) {
  if (!layout->inputs.n_free && !layout->outputs.n_free) return MPISERVE_OK;
  layout->is_free = 1;
  layout->max_plain_rows = 0;
  const char *what = d->overwrites  ? "outputs that overwrite the inputs"
                     : d->local[0]  ? "local models"
                     : d->uncertain ? "an uncertainty"
                                    : NULL;
  if (!what) return MPISERVE_OK;
  return msi_error(MPISERVE_ECONFIG, "service '%s': tensors with free dimensions, and %s", d->name,
                   what);
}

static int check_rows(msi_layout *layout, const mpiserve_description *d) {
  msi_side *in = &layout->inputs, *out = &layout->outputs;
  int ragged = d->rows == MPISERVE_RAGGED, none = ragged || d->rows == MPISERVE_NO_ROWS;
  int empty = d->allow_empty != 0;
  in->least_rows = out->least_rows = !empty;
  if (!in->n || !out->n) return MPISERVE_OK;
  if (in->has_rows == none || out->has_rows == none)
    return msi_error(MPISERVE_ECONFIG,
                     "service '%s': the first dimension of every tensor is the number of rows and "
                     "must be -1, or rows is none and no tensor has such a dimension",
                     d->name);
  if (none && !ragged && (d->max_batch_rows != 1 || (empty && !in->n_free && !out->n_free)))
    return msi_error(MPISERVE_ECONFIG,
                     "service '%s': without rows max_batch_rows is 1, and no request is empty",
                     d->name);
  if (ragged && !in->n_free)
    return msi_error(MPISERVE_ECONFIG,
                     "service '%s': it is ragged, and no input has a free dimension", d->name);
  layout->is_ragged = ragged;
  return check_free(layout, d);
}

int msi_layout_init(msi_layout *layout, const mpiserve_description *description, uint32_t lanes) {
  const mpiserve_description *d = description;
  int64_t most = d->rows == MPISERVE_RAGGED ? 1 : d->max_batch_rows;
  *layout = (msi_layout){
      .lanes = lanes, .max_rows = most, .max_plain_rows = most, .batch_rows = d->max_batch_rows};
  int code = msi_side_init(&layout->inputs, "input", d->n_inputs, d->inputs);
  if (!code) code = msi_side_init_outputs(&layout->outputs, d);
  if (!code) code = check_rows(layout, d);
  layout->inputs.slot_bytes = layout->outputs.slot_bytes = MSI_EAGER_BYTES;
  if (code || !lanes) return code;
  layout->slab_rows = slab_rows(layout, d);
  code = check_bytes(layout, d);
  if (code) return code;
  layout->doorbells_at = sizeof(msi_section_header);
  layout->lanes_at = align_up(layout->doorbells_at + lanes);
  size_t at = layout->lanes_at + lanes * sizeof(msi_slot) * MSI_SLOTS;
  if (d->overwrites) at = msi_pages(at);
  at = msi_side_lay_out(&layout->inputs, layout->slab_rows, at, layout->inputs_at);
  layout->bytes = at = msi_pages(at);
  if (d->overwrites) return overlay(layout, d->name);
  at = msi_side_lay_out(&layout->outputs, layout->slab_rows, at, layout->outputs_at);
  layout->bytes = msi_pages(at);
  return MPISERVE_OK;
}

int msi_state_of(const int64_t *entered_ns) {
  int last = MPISERVE_LAUNCHED;
  for (int i = 0; i < MPISERVE_STATES; i++)
    if (i != MPISERVE_BUSY && entered_ns[i] >= entered_ns[last]) last = i;
  return last == MPISERVE_READY && entered_ns[MPISERVE_BUSY] ? MPISERVE_BUSY : last;
}

void msi_layout_move(msi_layout *layout, size_t at) {
  layout->header_at += at;
  layout->doorbells_at += at;
  layout->lanes_at += at;
  for (int i = 0; i < layout->inputs.n; i++) layout->inputs_at[i] += at;
  for (int i = 0; i < layout->outputs.n; i++) layout->outputs_at[i] += at;
}

int msi_side_eager(const msi_side *side, int64_t rows) {
  return (size_t)rows * side->eager_row_bytes <= side->slot_bytes;
}

#ifdef __SSE2__
enum { LINE = 4 * sizeof(__m128i), PAST_CACHES = 8 << 20 };

/* Stores that do not read what they overwrite: 16 MiB in and out took 3.0 to 3.4 ms in
 * place of 4.6 to 4.8; 4 MiB gain a few percent only. */
static void stream(uint8_t *to, const uint8_t *from, size_t lines) {
  for (; lines; lines--, to += LINE, from += LINE) {
    __m128i *a = (__m128i *)to;
    const __m128i *b = (const __m128i *)from;
    __m128i x = _mm_loadu_si128(b), y = _mm_loadu_si128(b + 1);
    __m128i z = _mm_loadu_si128(b + 2), w = _mm_loadu_si128(b + 3);
    _mm_stream_si128(a, x);
    _mm_stream_si128(a + 1, y);
    _mm_stream_si128(a + 2, z);
    _mm_stream_si128(a + 3, w);
  }
  _mm_sfence(); /* no later release store orders these stores by itself */
}

void msi_copy(void *to, const void *from, size_t bytes) {
  if (bytes < PAST_CACHES) {
    memcpy(to, from, bytes);
    return;
  }
  size_t head = -(uintptr_t)to % sizeof(__m128i), lines = (bytes - head) / LINE;
  size_t done = head + lines * LINE;
  memcpy(to, from, head);
  stream((uint8_t *)to + head, (const uint8_t *)from + head, lines);
  memcpy((uint8_t *)to + done, (const uint8_t *)from + done, bytes - done);
}
#else
void msi_copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
#endif

void msi_side_pack(const msi_side *side, int64_t rows, uint8_t *to, void *const *from) {
  for (int i = 0; i < side->n; i++) {
    size_t bytes = (size_t)rows * side->row_bytes[i];
    memcpy(to, from[i], bytes);
    to += bytes;
  }
}

void msi_side_unpack(const msi_side *side, int64_t rows, void *const *to, const uint8_t *from) {
  for (int i = 0; i < side->n; i++) {
    size_t bytes = (size_t)rows * side->row_bytes[i];
    memcpy(to[i], from, bytes);
    from += bytes;
  }
}
