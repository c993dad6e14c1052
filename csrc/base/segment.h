/* segment: memory that several processes of a node map. It is a file without a name
 * (memfd_create), so nothing of it stays behind, however its processes end, and the size of
 * /dev/shm does not matter. All of its pages are reserved when it is made: no later access fails
 * for want of memory. No MPI calls. */
#ifndef MSI_SEGMENT_H
#define MSI_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

typedef struct msi_segment {
  uint8_t *memory; /* zero at first; whole pages; large ones begin at a huge page. NULL: none */
  size_t bytes;
  int fd; /* of who made it; -1: it was attached */
} msi_segment;

/* Which segment, for another process. */
typedef struct msi_segment_id {
  uint64_t device, inode; /* of the file */
  uint64_t bytes;
  int32_t pid, fd; /* of who made it */
} msi_segment_id;

/* Makes a segment of at least so many bytes; none if bytes is 0. With too little memory it is an
 * error at once (MPISERVE_ENOMEM), whose text has the bytes that are needed and free. */
int msi_segment_open(msi_segment *segment, size_t bytes);

/* The same for memory that programs of this user may look at, by the name "mpiserve-rank" in
 * /proc/PID/fd, and only this process writes to (where the kernel can see to that: Linux 5.1). */
int msi_segment_open_shown(msi_segment *segment, size_t bytes);

/* Reserves the pages of memory that a library has mapped and nobody has used yet, as those of a
 * segment are; kernels before Linux 5.14 cannot. An error as above. */
int msi_segment_fill(void *memory, size_t bytes);

/* Maps the first bytes of a segment that another process has made and still has. The processes
 * must be of one user, and see each other in /proc. */
int msi_segment_attach(msi_segment *segment, const msi_segment_id *id, size_t bytes);

/* Of a segment that this process made; zero for none. */
msi_segment_id msi_segment_identify(const msi_segment *segment);

/* Unmaps it: the memory is free when every process has. Safe if there is none. */
void msi_segment_close(msi_segment *segment);

#endif
