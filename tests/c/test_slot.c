#include "protocol/slot.h"

#include <stdlib.h>

#include "check.h"

/* x: float64 [rows, 3]; n: int32 [rows]  ->  y: float32 [rows, 5] */
static mpiserve_description description_of(int64_t max_batch_rows) {
  return (mpiserve_description){
      .name = "flame",
      .n_inputs = 2,
      .n_outputs = 1,
      .inputs = {{.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, 3}},
                 {.name = "n", .dtype = MPISERVE_INT32, .ndim = 1, .shape = {-1}}},
      .outputs = {{.name = "y", .dtype = MPISERVE_FLOAT32, .ndim = 2, .shape = {-1, 5}}},
      .max_batch_rows = max_batch_rows,
  };
}

enum { ROW_IN = 28, ROW_OUT = 20, ROW = ROW_IN + ROW_OUT };

static void test_pieces_lie_behind_each_other(void) {
  mpiserve_description description = description_of(100);
  msi_layout layout;
  CHECK(!msi_layout_init(&layout, &description, 3));
  size_t rows = layout.slab_rows;
  CHECK(layout.lanes_at >= 3 && layout.max_rows == 100);
  CHECK(layout.inputs_at[0] >= layout.lanes_at + 3 * MSI_SLOTS * sizeof(msi_slot));
  CHECK(layout.inputs_at[1] >= layout.inputs_at[0] + rows * 24);
  CHECK(layout.outputs_at[0] >= layout.inputs_at[1] + rows * 4);
  CHECK(layout.bytes >= layout.outputs_at[0] + rows * ROW_OUT);
  CHECK(layout.bytes < rows * ROW + 4 * MSI_SLOTS * sizeof(msi_slot) + 2 * MSI_PAGE);
}

static void test_pieces_begin_at_cache_lines(void) {
  mpiserve_description description = description_of(7);
  msi_layout layout;
  for (uint32_t lanes = 1; lanes < 200; lanes += 33) {
    CHECK(!msi_layout_init(&layout, &description, lanes));
    CHECK(layout.lanes_at % MSI_ALIGN == 0 && layout.bytes % MSI_ALIGN == 0);
    CHECK(layout.inputs_at[0] % MSI_ALIGN == 0 && layout.inputs_at[1] % MSI_ALIGN == 0);
    CHECK(layout.outputs_at[0] % MSI_ALIGN == 0);
  }
}

static void test_outputs_have_pages_of_their_own(void) {
  mpiserve_description description = description_of(7);
  msi_layout layout;
  for (int overwrites = 0; overwrites < 2; overwrites++) {
    CHECK(!msi_layout_init(&layout, &description, 3));
    CHECK(layout.outputs_at[0] % MSI_PAGE == 0 && layout.bytes % MSI_PAGE == 0);
    description.overwrites = 1;
    description.n_outputs = description.n_inputs;
    memcpy(description.outputs, description.inputs, sizeof description.inputs);
  }
}

static void test_no_lanes_take_no_memory(void) {
  mpiserve_description description = description_of(100);
  msi_layout layout;
  CHECK(!msi_layout_init(&layout, &description, 0) && layout.bytes == 0);
}

static void test_a_wrong_signature_is_refused(void) {
  mpiserve_description description = description_of(100);
  msi_layout layout;
  description.outputs[0].dtype = 77;
  CHECK(msi_layout_init(&layout, &description, 1) == MPISERVE_EDTYPE);
}

static void test_a_segment_that_no_memory_holds_is_refused(void) {
  mpiserve_description description = description_of(1 << 20);
  msi_layout layout;
  description.inputs[0].shape[1] = 1 << 24;
  CHECK(msi_layout_init(&layout, &description, 1) == MPISERVE_ECONFIG);
  CHECK_TEXT(mpiserve_last_error(), "lower max_batch_rows or pool_bytes");
}

static uint32_t slab_rows(int64_t max_rows, uint32_t lanes, int64_t pool_bytes) {
  mpiserve_description description = description_of(max_rows);
  msi_layout layout;
  description.pool_bytes = pool_bytes;
  CHECK(!msi_layout_init(&layout, &description, lanes));
  return layout.slab_rows;
}

static void test_rows_of_the_slabs(void) {
  CHECK(slab_rows(100, 4, 0) == 3200);               /* twice the slots of each lane */
  CHECK(slab_rows(100, 4, 500 * ROW) == 500);        /* as many as fit */
  CHECK(slab_rows(100, 4, 1) == 200);                /* never less than two batches */
  CHECK(slab_rows(100, 1, (int64_t)1 << 40) == 800); /* never more than is of use */
  CHECK(slab_rows(1 << 27, 2, (int64_t)1 << 60) == (uint32_t)1 << 31);
  CHECK(slab_rows(1 << 29, 64, INT64_MAX) == UINT32_MAX);
}

static void test_what_rides_in_a_slot(void) {
  mpiserve_description description = description_of(100);
  msi_layout layout;
  CHECK(!msi_layout_init(&layout, &description, 1));
  int64_t most = MSI_EAGER_BYTES / ROW_IN; /* inputs are the larger side */
  CHECK(msi_side_eager(&layout.inputs, 1) && msi_side_eager(&layout.inputs, most));
  CHECK(!msi_side_eager(&layout.inputs, most + 1));
  description.outputs[0].shape[1] = MSI_EAGER_BYTES / 4;
  CHECK(!msi_layout_init(&layout, &description, 1));
  CHECK(msi_side_eager(&layout.outputs, 1) && !msi_side_eager(&layout.outputs, 2));
}

static void test_outputs_that_overwrite_lie_with_the_inputs(void) {
  mpiserve_description description = description_of(10);
  msi_layout apart, together;
  CHECK(!msi_layout_init(&apart, &description, 1));
  description.overwrites = 1;
  CHECK(msi_layout_init(&together, &description, 1) == MPISERVE_ECONFIG);
  memcpy(description.outputs, description.inputs, sizeof description.inputs);
  description.n_outputs = description.n_inputs;
  CHECK(!msi_layout_init(&together, &description, 1));
  for (int i = 0; i < description.n_inputs; i++)
    CHECK(together.outputs_at[i] == together.inputs_at[i]);
  CHECK(together.bytes < apart.bytes);
}

static void test_slots_go_round(void) {
  mpiserve_description description = description_of(10);
  msi_layout layout;
  CHECK(!msi_layout_init(&layout, &description, 2));
  CHECK(msi_slot_at(&layout, 0, 1) == layout.lanes_at);
  CHECK(msi_slot_at(&layout, 0, 2) == layout.lanes_at + sizeof(msi_slot));
  CHECK(msi_slot_at(&layout, 0, MSI_SLOTS + 1) == layout.lanes_at);
  CHECK(msi_slot_at(&layout, 1, 1) == layout.lanes_at + MSI_SLOTS * sizeof(msi_slot));
  size_t last = msi_slot_at(&layout, 1, MSI_SLOTS);
  CHECK(last + sizeof(msi_slot) <= layout.inputs_at[0]);
}

/* Slots are one writer's by the cache line, and a reply is one message. */
static void test_parts_of_a_slot(void) {
  CHECK(offsetof(msi_slot, input) == sizeof(msi_request_header));
  CHECK(offsetof(msi_slot, reply) % MSI_ALIGN == 0);
  CHECK(offsetof(msi_slot, output) == offsetof(msi_slot, reply) + sizeof(msi_reply_header));
  CHECK(sizeof(msi_slot) % MSI_ALIGN == 0);
}

static void test_pack_and_unpack_are_inverse(void) {
  mpiserve_description description = description_of(10);
  msi_layout layout;
  uint8_t packed[3 * ROW_IN], x[72], n[12], x_back[72] = {0}, n_back[12] = {0};
  CHECK(!msi_layout_init(&layout, &description, 1));
  for (int i = 0; i < 72; i++) x[i] = (uint8_t)rand();
  for (int i = 0; i < 12; i++) n[i] = (uint8_t)rand();
  msi_side_pack(&layout.inputs, 3, packed, (void *[]){x, n});
  CHECK(!memcmp(packed, x, 72) && !memcmp(packed + 72, n, 12));
  msi_side_unpack(&layout.inputs, 3, (void *[]){x_back, n_back}, packed);
  CHECK(!memcmp(x, x_back, 72) && !memcmp(n, n_back, 12));
}

/* From and to any address, with ends that fill no line. */
static void test_copies_large_and_small_are_exact(void) {
  const size_t most = (9 << 20) + 77;
  uint8_t *from = malloc(most + 64), *to = malloc(most + 64);
  for (size_t i = 0; i < most + 64; i++) from[i] = (uint8_t)(i * 31 + i / 251);
  const size_t sizes[] = {1, 100, 4096, most};
  for (int n = 0; n < 4; n++)
    for (size_t shift = 0; shift < 20; shift += 5) {
      memset(to, 7, most + 64);
      msi_copy(to + shift, from + 3, sizes[n]);
      CHECK(!memcmp(to + shift, from + 3, sizes[n]) && to[shift + sizes[n]] == 7);
      CHECK(shift == 0 || to[shift - 1] == 7);
    }
  free(from);
  free(to);
}

int main(void) {
  test_pieces_lie_behind_each_other();
  test_pieces_begin_at_cache_lines();
  test_outputs_have_pages_of_their_own();
  test_no_lanes_take_no_memory();
  test_a_wrong_signature_is_refused();
  test_a_segment_that_no_memory_holds_is_refused();
  test_rows_of_the_slabs();
  test_what_rides_in_a_slot();
  test_outputs_that_overwrite_lie_with_the_inputs();
  test_slots_go_round();
  test_parts_of_a_slot();
  test_pack_and_unpack_are_inverse();
  test_copies_large_and_small_are_exact();
  return check_result();
}
