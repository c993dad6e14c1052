#define _GNU_SOURCE
#include "mpi/parts.h"

#include <stdio.h>
#include <stdlib.h>

enum { TAG = 17 }; /* no other message is under way: all ranks have left all heads */

int msi_parts_receiver(const msi_world *world) {
  int rank = 0;
  while (rank < world->size - 1 && world->roles[rank] != MPISERVE_INFERENCE) rank++;
  return rank;
}

/* Readers see a whole file. */
static void write_copy(int rank, const void *part, size_t bytes) {
  char name[MPISERVE_TEXT_SIZE], whole[MPISERVE_TEXT_SIZE];
  msi_profile_name(rank, ".part.new", name);
  msi_profile_name(rank, ".part.copy", whole);
  FILE *file = fopen(name, "wb");
  if (!file) return;
  int written = fwrite(part, 1, bytes, file) == bytes;
  if (fclose(file) || !written || rename(name, whole)) remove(name);
}

static void receive(const msi_world *world, int rank) {
  MPI_Status status;
  int bytes;
  if (MPI_Probe(rank, TAG, world->comm, &status)) return;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  void *part = malloc((size_t)bytes + 1);
  if (!part) bytes = 0; /* then it is cut, and an error that nobody looks at */
  MPI_Recv(part, bytes, MPI_BYTE, rank, TAG, world->comm, MPI_STATUS_IGNORE);
  if (bytes) write_copy(rank, part, (size_t)bytes);
  free(part);
}

void msi_parts_gather(const msi_world *world, const msi_profile *profile) {
  int to = msi_parts_receiver(world);
  if (!world->profile) return;
  if (world->rank != to) {
    int bytes = profile->part ? profile->part->bytes : 0;
    if (world->nodes[world->rank] != world->nodes[to])
      MPI_Send(profile->part, bytes, MPI_BYTE, to, TAG, world->comm);
    return;
  }
  for (int r = 0; r < world->size; r++)
    if (world->nodes[r] != world->nodes[to]) receive(world, r);
}
