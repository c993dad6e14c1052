/* handover: calls from the process that holds MPI to its child, which runs a model, through memory
 * that both map. One call at a time: the parent posts it, the child takes it, may report rows that
 * are done, and ends it. No MPI calls, and no knowledge of models: operations and codes are numbers
 * that the two sides agree on.
 *
 * The memory is new (all zero) for each child, so a child that died leaves nothing behind. */
#ifndef MSI_HANDOVER_H
#define MSI_HANDOVER_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/wait.h"

/* Inputs, outputs, and the clients of the rows. */
enum { MSI_HANDOVER_PLACES = 2 * 16 + 1, MSI_HANDOVER_LINE = 64 };

/* Where a tensor lies: one of the memories that both map, and the bytes before it. */
typedef struct msi_place {
  uint64_t memory, offset;
} msi_place;

/* What both map. Each half is written by one side; the other side may be dead or may have gone
 * wild, so the parent trusts nothing that it reads in the child's half. */
typedef struct msi_handover {
  /* The parent's half. request orders the fields behind it: they are written before it rises. */
  _Alignas(MSI_HANDOVER_LINE) _Atomic uint32_t request; /* calls so far */
  _Atomic uint32_t parent_asleep;
  uint32_t operation, places;
  int64_t rows;
  uint64_t size; /* bytes of a message that comes with the call */
  msi_place place[MSI_HANDOVER_PLACES];
  /* The child's half. news orders the fields behind it. */
  _Alignas(MSI_HANDOVER_LINE) _Atomic uint32_t news; /* rises; odd at an end, else a report */
  _Atomic uint32_t child_asleep;
  _Atomic uint32_t taken; /* the number of the last such call */
  _Atomic int64_t rows_done;
  uint32_t looks; /* how often the child's caller has looked for calls: a test counts them */
  int32_t code;
  uint64_t answer_size; /* bytes of a message that comes with the end */
} msi_handover;

/* One side. Zero-initialise. */
typedef struct msi_handover_side {
  msi_handover *shared;
  uint32_t request, news;
  msi_backoff backoff;
} msi_handover_side;

enum { MSI_HANDOVER_LATE, MSI_HANDOVER_ROWS, MSI_HANDOVER_ENDED, MSI_HANDOVER_DEAD };

void msi_handover_open(msi_handover_side *side, msi_handover *shared);

/* The parent posts a call, whose fields it has written. */
void msi_handover_post(msi_handover_side *parent);

/* The parent waits until the call has ended, or rows are done, or the child is dead, or the
 * deadline (as msi_deadline() gives it) has passed.
 * pidfd: of the child; -1 leaves its death unnoticed. */
int msi_handover_wait(msi_handover_side *parent, int64_t deadline, int pidfd);

/* Whether the child had taken the call that was posted last. */
int msi_handover_taken(const msi_handover_side *parent);

/* Whether the process of a pidfd has ended. Never waits. */
int msi_handover_dead(int pidfd);

/* The child waits for a call, until the deadline; returns whether there is one. */
int msi_handover_next(msi_handover_side *child, int64_t deadline);

/* The child reports that the first rows of all outputs are final. */
void msi_handover_rows(msi_handover_side *child, int64_t rows);

/* The child ends the call. */
void msi_handover_end(msi_handover_side *child, int code, uint64_t answer_size);

#endif
