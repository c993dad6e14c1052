/* batch: the batching policy and the queue that it works on. No MPI calls, no
 * clock: time is passed in. Used by one thread at a time. */
#ifndef MSI_BATCH_H
#define MSI_BATCH_H

#include <stdint.h>

/* A request that waits at the head. */
typedef struct msi_entry {
  uint64_t sequence;
  uint32_t port, lane;
  uint32_t rows;
  uint32_t input_row, output_row; /* in the slabs of its port, or MSI_IN_SLOT */
  uint32_t at;                    /* its first row in its batch */
  int answered;
  int32_t lease; /* that is asked for */
  int64_t taken_ns;
} msi_entry;

#define MSI_IN_SLOT UINT32_MAX

/* First in, first out; grows to the most requests that ever waited. */
typedef struct msi_queue {
  msi_entry *entries;
  uint32_t first, n, capacity; /* capacity is a power of two */
  int64_t rows;                /* of all entries */
} msi_queue;

int msi_queue_open(msi_queue *queue);
void msi_queue_close(msi_queue *queue);
int msi_queue_push(msi_queue *queue, msi_entry entry);
msi_entry msi_queue_pop(msi_queue *queue);
msi_entry *msi_queue_at(const msi_queue *queue, uint32_t i);

typedef struct msi_policy {
  int64_t max_rows;
  int64_t max_delay_ns;
} msi_policy;

typedef enum msi_close_reason {
  MSI_OPEN = 0,          /* wait for more */
  MSI_CLOSED_ROWS = 1,   /* no more rows fit */
  MSI_CLOSED_CENSUS = 2, /* every client that can still ask has asked */
  MSI_CLOSED_DELAY = 3   /* the oldest request has waited long enough */
} msi_close_reason;

/* Shall the batch be closed now? asked: clients with a request in the queue;
 * able: clients that can ask. */
msi_close_reason msi_batch_decide(const msi_policy *policy, const msi_queue *queue, uint32_t asked,
                                  uint32_t able, int64_t now_ns);

/* How many requests from the front of the queue fit into one batch. */
uint32_t msi_batch_fit(const msi_policy *policy, const msi_queue *queue, int64_t *rows);

#endif
