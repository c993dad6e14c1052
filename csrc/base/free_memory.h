/* free_memory: how much memory this process may still take, and what sets that limit: the machine,
 * the control groups of a batch system or a container, or a limit of the process. No MPI calls. */
#ifndef MSI_FREE_MEMORY_H
#define MSI_FREE_MEMORY_H

#include <stdint.h>

typedef struct msi_free_memory {
  uint64_t bytes;
  char limit[160]; /* what sets it, for the text of an error; "" if nothing could be found out */
} msi_free_memory;

/* Reads /proc and /sys/fs/cgroup, which takes about 0.1 ms. root is put before these paths: "", or
 * a folder of a test. */
msi_free_memory msi_free_memory_find(const char *root);

#endif
