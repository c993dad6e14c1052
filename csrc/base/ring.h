/* ring: records from one process to another, through memory that both map: one writes, one reads.
 * A record is whole and lies in one piece, so the reader uses it where it is. Nobody waits here.
 * The reader may be killed at any time; the writer trusts nothing of it but `read`, which it
 * bounds. No MPI calls. */
#ifndef MSI_RING_H
#define MSI_RING_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { MSI_RING_LINE = 64, MSI_RING_TEXT = 256 };

/* What both map, zero at first. Each half is written by one side. Records follow. */
typedef struct msi_ring_shared {
  _Alignas(MSI_RING_LINE) _Atomic uint64_t written; /* bytes so far, those of gaps too */
  _Atomic uint64_t dropped;                         /* rows that found no room */
  _Atomic uint32_t given_up; /* it waits no more for a reader that takes nothing */
  _Alignas(MSI_RING_LINE) _Atomic uint64_t read; /* bytes so far */
  _Atomic uint32_t closed;                       /* the reader takes no more, */
  char text[MSI_RING_TEXT];                      /* and why; written before */
} msi_ring_shared;

/* Who has computed the outputs: a model, or the client itself, which has recorded them. */
enum { MSI_OF_MODEL = 0, MSI_OF_PHYSICS = 1 };

/* Rows of one request and of its answer: first the inputs, tensor by tensor, then the outputs.
 * Those that were recorded are of no batch: what is said of that, and of the model, is 0. */
typedef struct msi_record {
  uint64_t bytes;      /* with this header and a gap to the next one; a multiple of a line */
  uint32_t rows, at;   /* at: in its batch, or in its record */
  int32_t rank;        /* of the client, in the world */
  uint16_t service;    /* among those of its rank */
  uint16_t generation; /* of the model */
  uint32_t model;      /* a number that the caller gave it */
  uint32_t batch_rows, batch_requests;
  uint32_t source;
  uint64_t sequence; /* of the request, in its lane */
  /* batch, time: when it was closed, and the request answered, by the clock of the node */
  int64_t batch, step, time_ns;
} msi_record;

_Static_assert(sizeof(msi_record) % 8 == 0, "tensors behind it are aligned");

/* The writer's side. */
typedef struct msi_ring {
  msi_ring_shared *shared; /* NULL: there is none */
  uint8_t *records;
  uint64_t size;    /* bytes for records; a multiple of a line */
  uint64_t written; /* as in shared: this side is the only writer */
} msi_ring;

static inline void msi_ring_open(msi_ring *ring, void *memory, size_t bytes) {
  size_t size = (bytes - sizeof(msi_ring_shared)) / MSI_RING_LINE * MSI_RING_LINE;
  *ring = (msi_ring){memory, (uint8_t *)memory + sizeof(msi_ring_shared), size, 0};
  ring->written = atomic_load_explicit(&ring->shared->written, memory_order_relaxed);
}

static inline uint64_t msi_ring_size_of(uint64_t payload) {
  return (sizeof(msi_record) + payload + MSI_RING_LINE - 1) / MSI_RING_LINE * MSI_RING_LINE;
}

/* Room for a record of so many bytes (msi_ring_size_of), or NULL: now, or for ever if it is larger
 * than half of the ring. What lies behind the last record up to the end becomes a gap. */
static inline msi_record *msi_ring_reserve(msi_ring *ring, uint64_t bytes) {
  /* Acquire: what the reader read was read before it is written over. */
  uint64_t read = atomic_load_explicit(&ring->shared->read, memory_order_acquire);
  uint64_t used = ring->written - read, at = ring->written % ring->size;
  uint64_t gap = at + bytes > ring->size ? ring->size - at : 0;
  if (bytes > ring->size / 2 || used > ring->size || ring->size - used < gap + bytes) return NULL;
  msi_record *record = (msi_record *)(ring->records + at);
  if (!gap) return record;
  record->bytes = gap; /* a gap of one line has no room for a whole record */
  record->rows = 0;
  ring->written += gap;
  return (msi_record *)ring->records;
}

static inline int msi_ring_is_closed(const msi_ring *ring) {
  /* Acquire: the text is there. */
  return (int)atomic_load_explicit(&ring->shared->closed, memory_order_acquire);
}

/* Has the writer given up, or the reader closed? */
static inline int msi_ring_is_over(const msi_ring *ring) {
  return atomic_load_explicit(&ring->shared->given_up, memory_order_relaxed) ||
         msi_ring_is_closed(ring);
}

/* The record that was reserved, with its bytes, is complete. */
static inline void msi_ring_commit(msi_ring *ring, const msi_record *record) {
  ring->written += record->bytes;
  /* Release: the reader sees the record that belongs to the number. */
  atomic_store_explicit(&ring->shared->written, ring->written, memory_order_release);
}

static inline void msi_ring_drop(msi_ring *ring, uint64_t rows) {
  uint64_t dropped = atomic_load_explicit(&ring->shared->dropped, memory_order_relaxed);
  atomic_store_explicit(&ring->shared->dropped, dropped + rows, memory_order_relaxed);
}

/* ---- the reader ------------------------------------------------------------------------ */

/* The next record, where rows is 0 in a gap; NULL: there is none. */
static inline const msi_record *msi_ring_next(const msi_ring *ring) {
  uint64_t read = atomic_load_explicit(&ring->shared->read, memory_order_relaxed);
  /* Acquire: pairs with the release of the commit. */
  uint64_t written = atomic_load_explicit(&ring->shared->written, memory_order_acquire);
  if (written == read) return NULL;
  return (const msi_record *)(ring->records + read % ring->size);
}

static inline void msi_ring_take(const msi_ring *ring, const msi_record *record) {
  uint64_t read = atomic_load_explicit(&ring->shared->read, memory_order_relaxed);
  /* Release: the writer may write there from now on. */
  atomic_store_explicit(&ring->shared->read, read + record->bytes, memory_order_release);
}

static inline void msi_ring_close(const msi_ring *ring) {
  /* Release: the text is complete. */
  atomic_store_explicit(&ring->shared->closed, 1, memory_order_release);
}

#endif
