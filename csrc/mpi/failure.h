/* failure: which ranks of the world have died, by the signs that there are: on a node the kernel
 * tells, wherever they are MPI tells if it goes on after a failure (Open MPI 5 under mpirun
 * --with-ft ulfm). In a world that nobody watches, nobody dies. One thread at a time, the one that
 * may call MPI. Every call here is local. */
#ifndef MSI_FAILURE_H
#define MSI_FAILURE_H

#include "base/peer.h"
#include "mpi/world.h"

struct pollfd;

typedef struct msi_failure {
  msi_identity *ranks;  /* by world rank */
  uint8_t *dead;        /* by world rank */
  int n_dead;           /* known to be */
  struct pollfd *polls; /* on ranks of this node and the other role, */
  int *watched;         /* which are these */
  int n_watched;
  int64_t next_ns; /* not before this time is there another look */
} msi_failure;

/* Takes the ranks over, and watches those of this node that have the other role. */
int msi_failure_open(msi_world *world, msi_identity *ranks);
void msi_failure_close(msi_world *world);

/* For the slow paths of waits. Looks at the watched ranks, at most every 10 ms: how many ranks are
 * known to be dead? A sweep looks at all ranks of this node, at any time. */
int msi_failure_look(const msi_world *world);
int msi_failure_sweep(const msi_world *world);

/* How many are known to be dead, and is this one? */
int msi_failure_count(const msi_world *world);
int msi_failure_is_dead(const msi_world *world, int rank);

/* Was the code of MPI that of a failed process? Then the failed processes of comm, whose ranks are
 * the world's, are dead, and acknowledged: otherwise no receive from any source works again. */
int msi_failure_note(const msi_world *world, MPI_Comm comm, int mpi_code);

/* The caller knows that it is dead. */
void msi_failure_mark(const msi_world *world, int rank);

/* Does MPI go on after a death, and tell of it? */
int msi_failure_is_tolerated(void);

/* Is it such a code? */
int msi_failure_is_code(int mpi_code);

/* As far as can be seen from here. */
msi_peer_state msi_failure_state_of(const msi_world *world, int rank);

/* Appends "inference rank 3 (pid 77 on host n1)" to a text of so many bytes. */
void msi_failure_name(const msi_world *world, int rank, char *text, size_t bytes);

/* Appends the ranks that have died. */
void msi_failure_name_dead(const msi_world *world, char *text, size_t bytes);

#endif
