#define _GNU_SOURCE
#include "mpi/pair.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "mpiserve.h"

enum { SIDES = 2 };

/* What one process writes. Two pieces, in turns: who posts a round has read the other one's last
 * piece, which that one posted after it had read the piece before. So nobody reads the piece that
 * is overwritten. */
typedef struct side {
  _Atomic uint32_t taken; /* a process has this side */
  _Atomic uint32_t round; /* that is posted */
  uint8_t pieces[2][MSI_PAIR_PIECE];
} side;

typedef struct msi_pair_board {
  side sides[SIDES];
} board;

_Static_assert(sizeof(board) <= MPISERVE_PAIR_BYTES, "a file of a pair has room for it");

static int map(int file, board **memory) {
  struct stat status;
  if (fstat(file, &status) || status.st_size < MPISERVE_PAIR_BYTES)
    return msi_error(MPISERVE_EARG, "the file of a pair must have MPISERVE_PAIR_BYTES (%d) bytes",
                     MPISERVE_PAIR_BYTES);
  void *at = mmap(NULL, sizeof(board), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (at == MAP_FAILED)
    return msi_error(MPISERVE_EARG, "the file of a pair cannot be mapped: %s", strerror(errno));
  *memory = at;
  return MPISERVE_OK;
}

/* The caller may close its own; without a copy the end of the process is not seen here. */
static int dup_of(int peer) { return fcntl(peer, F_DUPFD_CLOEXEC, 0); }

int msi_pair_open(msi_pair **pair, int file, int peer, int role) {
  board *memory = NULL;
  *pair = NULL;
  if (role != MPISERVE_SIMULATION && role != MPISERVE_INFERENCE)
    return msi_error(MPISERVE_EARG, "a pair is a simulation rank and an inference rank");
  int code = map(file, &memory);
  if (!code && atomic_exchange(&memory->sides[role].taken, 1))
    code = msi_error(MPISERVE_EARG, "the file of a pair has had a process of this role");
  if (!code && !(*pair = calloc(1, sizeof **pair)))
    code = msi_error(MPISERVE_ENOMEM, "no memory for a pair");
  if (!code) **pair = (msi_pair){.board = memory, .rank = role, .peer = dup_of(peer)};
  if (code && memory) munmap(memory, sizeof *memory);
  return code;
}

void msi_pair_close(msi_pair *pair) {
  if (!pair) return;
  munmap(pair->board, sizeof *pair->board);
  if (pair->peer >= 0) close(pair->peer);
  free(pair);
}

/* The release store puts the piece before its number. */
void msi_pair_post(msi_pair *pair, const void *data, size_t bytes) {
  side *mine = &pair->board->sides[pair->rank];
  pair->round++;
  if (bytes) memcpy(mine->pieces[pair->round % 2], data, bytes);
  atomic_store_explicit(&mine->round, pair->round, memory_order_release);
}

static side *other_side(const msi_pair *pair) { return &pair->board->sides[!pair->rank]; }

/* The other process may be one round ahead. Pairs with the release store of its post. */
int msi_pair_has_come(const msi_pair *pair) {
  uint32_t theirs = atomic_load_explicit(&other_side(pair)->round, memory_order_acquire);
  return theirs - pair->round <= 1;
}

void msi_pair_read(const msi_pair *pair, void *data, size_t bytes) {
  if (bytes) memcpy(data, other_side(pair)->pieces[pair->round % 2], bytes);
}

int msi_pair_is_interrupted(const msi_pair *pair) {
  return pair->interrupted && pair->interrupted(pair->data);
}

int msi_pair_is_alone(const msi_pair *pair) {
  struct pollfd end = {pair->peer, POLLIN, 0};
  return poll(&end, 1, 0) > 0 && end.revents & POLLIN;
}
