/* batch: the batching policy and the queue that it works on. No MPI calls, no
 * clock: time is passed in. Used by one thread at a time. */
#ifndef MSI_BATCH_H
#define MSI_BATCH_H

#include <stdint.h>

/* A request that waits at the head. */
typedef struct msi_entry {
  uint64_t sequence;
  uint32_t lane;
  uint8_t inbox;
  int8_t priority; /* in the queue at least that of any behind it in its lane */
  int8_t lease;    /* that is asked for */
  uint8_t picked : 1, answered : 1, piece : 1;
  uint8_t left : 1;     /* a batch was closed without it, because its dimensions differ */
  uint8_t goes_on : 1;  /* a piece, and others of its request follow */
  uint8_t in_round : 1; /* of a reproducible service: in the round whose batches are closed now */
  uint8_t partly : 1, keeps : 1; /* of a service that keeps answers: some rows are kept and not in
                                    the batch; those that the batch answers will be kept */
  uint32_t rows;
  uint32_t input_row, output_row; /* in the slabs of its inbox, or MSI_IN_SLOT */
  uint32_t at;                    /* its first row in its batch */
  int64_t taken_ns;
  int64_t deadline_ns; /* 0: none */
} msi_entry;

#define MSI_IN_SLOT UINT32_MAX

/* In the order of arrival; grows to the most requests that ever waited. */
typedef struct msi_queue {
  msi_entry *entries;
  uint32_t first, n, capacity; /* capacity is a power of two */
  int64_t rows;                /* of all entries */
  int empty;                   /* some may have 0 rows */
  int full;                    /* somebody found no room in the last look around */
  int ranked, timed;           /* since it was empty some had a priority, a deadline */
  int passed;                  /* batches in a row that passed an older request */
  int shared;                  /* a batch has held several requests */
  int64_t crowded;             /* batches of one request that others had to wait for, */
  int64_t together_rows;       /* and the most rows that waited at once then */
} msi_queue;

int msi_queue_open(msi_queue *queue);
void msi_queue_close(msi_queue *queue);
int msi_queue_push(msi_queue *queue, msi_entry entry);
msi_entry msi_queue_pop(msi_queue *queue);
msi_entry msi_queue_remove(msi_queue *queue, uint32_t i);
msi_entry *msi_queue_at(const msi_queue *queue, uint32_t i);

/* Services whose batches are not formed of whatever is in the queue. */
enum { MSI_PLAIN, MSI_IN_ROUNDS, MSI_CACHED };

typedef struct msi_policy {
  int64_t max_rows; /* of a batch; 0: that is alike_rows, and all of its requests are alike */
  int64_t max_delay_ns;
  int64_t queue_rows; /* that may wait; 0: no limit */
  int together;       /* a batch is one request, which waits for nobody */
  int special;        /* MSI_IN_ROUNDS: the service is reproducible, see head/rounds.h; MSI_CACHED:
                         it keeps answers, see head/cached.h */
  int64_t alike_rows;
  int (*alike)(const void *of, const msi_entry *a, const msi_entry *b); /* are they? */
  const void *of;
} msi_policy;

typedef enum msi_close_reason {
  MSI_OPEN = 0,          /* wait for more */
  MSI_CLOSED_ROWS = 1,   /* no more rows may join: the batch, or the queue, is full */
  MSI_CLOSED_CENSUS = 2, /* every client that can still ask has asked */
  MSI_CLOSED_DELAY = 3,  /* a request has waited long enough */
  MSI_CLOSED_HELD = 4    /* requests are held: what has come is to join them */
} msi_close_reason;

/* Shall the batch be closed now? asked: clients with a request in the queue;
 * able: clients that can ask. */
msi_close_reason msi_batch_decide(const msi_policy *policy, const msi_queue *queue, uint32_t asked,
                                  uint32_t able, int64_t now_ns);

/* May so many rows join the queue? An empty one takes any request. */
int msi_queue_admits(const msi_policy *policy, const msi_queue *queue, uint32_t rows);

/* Marks the requests of the next batch and tells how many they are; all of them are among
 * the first *span. Those of higher priority come first, but in every MSI_FAIR_TURN-th of
 * the batches that leave older ones behind. All are alike the first one: those that are not wait,
 * and none for long, since the oldest one comes first in the next batch. */
uint32_t msi_batch_pick(const msi_policy *policy, msi_queue *queue, uint32_t *span);

/* Counts a batch of n requests, before they leave the queue: did others lack room in it? */
void msi_queue_note(msi_queue *queue, uint32_t n, int lacked_room);

/* Takes them out of the queue. */
void msi_queue_take_picked(msi_queue *queue, uint32_t span);

enum { MSI_FAIR_TURN = 8 };

#endif
