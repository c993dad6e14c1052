/* peer: other processes of this node, and whether they live. A process is known by its number and
 * its start time: numbers are used again. No MPI calls. */
#ifndef MSI_PEER_H
#define MSI_PEER_H

#include <stddef.h>
#include <stdint.h>

#include "mpiserve.h"

/* Which process this is, for the others. */
typedef struct msi_identity {
  int32_t pid;
  uint64_t start;     /* in clock ticks since boot; 0: /proc does not say */
  uint64_t pid_space; /* in which pid is valid: containers have their own; 0: /proc does not say */
  char host[MPISERVE_NAME_SIZE];
} msi_identity;

typedef enum msi_peer_state {
  MSI_PEER_UNKNOWN, /* another host or container, or no /proc */
  MSI_PEER_ALIVE,
  MSI_PEER_STOPPED, /* by a signal or a debugger; it may go on */
  MSI_PEER_DEAD,
  MSI_PEER_STUCK /* alive, but its first thread waits in the kernel, where no signal reaches it: for
                  * a moment, or for a file system that does not answer */
} msi_peer_state;

msi_identity msi_identity_own(void);

/* Can this process look at that one? It is on this host, in the same space of numbers. */
int msi_identity_is_near(const msi_identity *own, const msi_identity *other);

/* What /proc says of a near process. Some system calls. */
msi_peer_state msi_peer_state_of(const msi_identity *near);

/* A descriptor of a process by its number, which must be its own (pidfd_open); -1, and errno. */
int msi_peer_open(int pid);

/* A descriptor that is readable once a near process has ended, zombies included: for poll(). -1:
 * it has ended, the kernel (before Linux 5.3) has none, or this process has too many. */
int msi_peer_watch(const msi_identity *near);

#endif
