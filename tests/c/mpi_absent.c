/* ranks: 1
 *
 * Rows over rma whose head is dead, or holds what looks so. MPI's functions are taken over here:
 * this rank is client and head, and a Get reaches its memory or, of a dead head, succeeds and does
 * nothing. */
#include <mpi.h>

#include "check.h"
#include "mpi/transport.h"

enum { BYTES = 100, ROWS_AT = 256 };

static const char MARK[] = "msi-rows";
static uint8_t head[1024];
static int is_dead, gets, flushes;

int MPI_Get(void *to, int bytes, MPI_Datatype type, int target, MPI_Aint at, int n,
            MPI_Datatype target_type, MPI_Win win) {
  (void)type, (void)target, (void)n, (void)target_type, (void)win;
  gets++;
  if (!is_dead) memcpy(to, head + at, (size_t)bytes);
  return MPI_SUCCESS;
}

int MPI_Win_flush(int target, MPI_Win win) {
  (void)target, (void)win;
  flushes++;
  return MPI_SUCCESS;
}

static int fetch(msi_path *path, int tensors, uint8_t *to, size_t bytes) {
  gets = flushes = 0;
  for (int i = 0; i < tensors; i++)
    CHECK(!path->transport->read(path, ROWS_AT + (size_t)i * BYTES, to + i * BYTES, bytes));
  return path->transport->read_end(path);
}

/* Rows are fetched by one operation each, and a flush; also by the request after a failed one. */
static void test_rows(msi_path *path) {
  uint8_t to[2 * BYTES];
  CHECK(!fetch(path, 2, to, BYTES));
  CHECK(!memcmp(to, head + ROWS_AT, sizeof to));
  CHECK(gets == 2 && flushes == 1);
}

/* They need one operation more, and are no error. */
static void test_rows_like_the_mark(msi_path *path, size_t bytes) {
  uint8_t to[BYTES], before[BYTES];
  size_t marked = bytes < strlen(MARK) ? bytes : strlen(MARK);
  memcpy(before, head + ROWS_AT, BYTES);
  memcpy(head + ROWS_AT + bytes - marked, MARK, marked);
  CHECK(!fetch(path, 1, to, bytes));
  CHECK(!memcmp(to, head + ROWS_AT, bytes));
  CHECK(gets == 2 && flushes == 2);
  memcpy(head + ROWS_AT, before, BYTES);
}

/* Where they were to go nothing has changed. */
static void test_rows_of_a_dead_head(msi_path *path, size_t bytes) {
  uint8_t to[2 * BYTES], before[2 * BYTES];
  for (int i = 0; i < 2 * BYTES; i++) to[i] = before[i] = (uint8_t)(200 - i);
  is_dead = 1;
  CHECK(fetch(path, 2, to, bytes) == MPISERVE_EPEER);
  is_dead = 0;
  CHECK(!memcmp(to, before, sizeof to));
  CHECK_TEXT(mpiserve_last_error(), "rank 1 has died before its results were fetched");
}

int main(void) {
  uint8_t roles[] = {MPISERVE_SIMULATION, MPISERVE_INFERENCE};
  msi_world world = {.size = 2, .roles = roles};
  msi_window window = {.world = &world, .win = MPI_WIN_NULL};
  msi_path path = {.transport = &msi_rma, .window = &window, .head = 1};
  for (size_t i = 0; i < sizeof head; i++) head[i] = (uint8_t)(i * 7);
  ((msi_section_header *)head)->magic = MSI_MAGIC;
  test_rows(&path);
  for (size_t bytes = 1; bytes < BYTES; bytes += 9) {
    test_rows_like_the_mark(&path, bytes);
    test_rows_of_a_dead_head(&path, bytes);
    test_rows(&path);
  }
  return check_result();
}
