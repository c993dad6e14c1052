/* pair: the memory by which the two processes of a pair do what the ranks of a world do by MPI: see
 * mpiserve_open_pair(). They go in rounds: in each one both post a piece, and read the other one's.
 * One thread at a time. No MPI calls. */
#ifndef MSI_PAIR_H
#define MSI_PAIR_H

#include <stddef.h>
#include <stdint.h>

enum { MSI_PAIR_PIECE = 16384 }; /* bytes of a round, at most */

typedef struct msi_pair {
  struct msi_pair_board *board;   /* what both map */
  int rank;                       /* of this process: 0 or 1, its role */
  int peer;                       /* a pidfd of the other process */
  uint32_t round;                 /* this process has posted */
  int (*interrupted)(void *data); /* asked while it waits, or NULL */
  void *data;
} msi_pair;

/* Maps the file, whose place of this role must be free. Both descriptors stay the caller's. *pair
 * is NULL after an error. */
int msi_pair_open(msi_pair **pair, int file, int peer, int role);

/* NULL is allowed. */
void msi_pair_close(msi_pair *pair);

/* Begins the next round, when this process has read the one before. */
void msi_pair_post(msi_pair *pair, const void *data, size_t bytes);

/* Has the other process posted in this round? Then its piece can be read, until the next one. */
int msi_pair_has_come(const msi_pair *pair);
void msi_pair_read(const msi_pair *pair, void *data, size_t bytes);

/* Is this process not to wait any longer? */
int msi_pair_is_interrupted(const msi_pair *pair);

/* Has the other process ended? What it posted before can be read. A system call. */
int msi_pair_is_alone(const msi_pair *pair);

#endif
