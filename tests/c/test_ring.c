/* The ring of a capture: what is read is what was written, and nothing is written outside of it. */
#include "base/ring.h"

#include <stdlib.h>

#include "check.h"

enum { LINES = 64, RECORDS = 5000, GUARD = 256 };

static void write_one(msi_ring *ring, uint32_t number, uint64_t payload) {
  msi_record *record = msi_ring_reserve(ring, msi_ring_size_of(payload));
  CHECK(record != NULL);
  if (!record) return;
  *record = (msi_record){.bytes = msi_ring_size_of(payload), .rows = 1, .at = number};
  memset(record + 1, (int)(number % 251), payload);
  msi_ring_commit(ring, record);
}

static void read_one(const msi_ring *ring, uint32_t number, uint64_t payload) {
  const msi_record *record = msi_ring_next(ring);
  while (record && !record->rows) { /* a gap */
    msi_ring_take(ring, record);
    record = msi_ring_next(ring);
  }
  CHECK(record && record->at == number);
  if (!record) return;
  const uint8_t *data = (const uint8_t *)(record + 1);
  for (uint64_t i = 0; i < payload; i++) CHECK(data[i] == number % 251);
  msi_ring_take(ring, record);
}

/* Records of two and three lines end at each line of the ring, so gaps of one line come, too. */
int main(void) {
  const size_t bytes = sizeof(msi_ring_shared) + LINES * MSI_RING_LINE;
  uint8_t *memory = aligned_alloc(MSI_RING_LINE, bytes + GUARD);
  msi_ring ring;
  if (!memory) return 1;
  memset(memory, 0, bytes);
  memset(memory + bytes, 0xa5, GUARD);
  msi_ring_open(&ring, memory, bytes);
  for (uint32_t number = 0; number < RECORDS; number++) {
    const uint64_t payload = number % 5 < 2 ? 40 : 100;
    write_one(&ring, number, payload);
    read_one(&ring, number, payload);
  }
  for (int i = 0; i < GUARD; i++) CHECK(memory[bytes + i] == 0xa5);
  free(memory);
  return check_result();
}
