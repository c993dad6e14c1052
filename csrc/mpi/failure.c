#define _GNU_SOURCE
#include "mpi/failure.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(OPEN_MPI) && defined(MPI_ERR_PROC_FAILED)
#include <mpi-ext.h>
#endif

#include "base/error.h"

enum { MOST_NAMED = 8 }; /* ranks of a text */

static const int64_t LOOK_NS = 10000000; /* between two looks */

static void mark(msi_failure *failure, int rank) {
  failure->n_dead += !failure->dead[rank];
  failure->dead[rank] = 1;
}

void msi_failure_mark(const msi_world *world, int rank) {
  if (world->failure) mark(world->failure, rank);
}

/* ---- what MPI says ----------------------------------------------------------------- */

#ifdef OMPI_HAVE_MPIX_COMM_GET_FAILED
/* Weak: an Open MPI that was built without them can load the library too. The name with P tells
 * whether it has them: libmpiserve_world.so brings the others along. */
#pragma weak PMPIX_Comm_get_failed
#pragma weak MPIX_Comm_get_failed
#pragma weak MPIX_Comm_ack_failed

int msi_failure_is_tolerated(void) {
  int found = 0, *tolerated = NULL;
  if (!PMPIX_Comm_get_failed) return 0; /* to Open MPI 4 the attribute is an error */
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_FT, &tolerated, &found);
  return found && *tolerated;
}

int msi_failure_is_code(int mpi_code) {
  int class = MPI_SUCCESS;
  if (!mpi_code || !PMPIX_Comm_get_failed) return 0;
  MPI_Error_class(mpi_code, &class);
  return class == MPI_ERR_PROC_FAILED || class == MPI_ERR_PROC_FAILED_PENDING ||
         class == MPI_ERR_REVOKED;
}

static void mark_group(const msi_world *world, MPI_Comm comm, MPI_Group failed) {
  MPI_Group all;
  int n = 0, rank;
  MPI_Comm_group(comm, &all);
  MPI_Group_size(failed, &n);
  for (int i = 0; i < n; i++)
    if (!MPI_Group_translate_ranks(failed, 1, &i, all, &rank) && rank != MPI_UNDEFINED)
      mark(world->failure, rank);
  MPI_Group_free(&all);
}

int msi_failure_note(const msi_world *world, MPI_Comm comm, int mpi_code) {
  MPI_Group failed;
  int acknowledged;
  if (!world->failure || !msi_failure_is_code(mpi_code)) return 0;
  if (MPIX_Comm_get_failed(comm, &failed)) return 1;
  mark_group(world, comm, failed);
  MPI_Group_free(&failed);
  MPIX_Comm_ack_failed(comm, world->size, &acknowledged);
  return 1;
}
#else
int msi_failure_is_tolerated(void) { return 0; }

int msi_failure_is_code(int mpi_code) { return 0 && mpi_code; }

int msi_failure_note(const msi_world *world, MPI_Comm comm, int mpi_code) {
  return (void)world, (void)comm, (void)mpi_code, 0;
}
#endif

/* ---- what the kernel says ------------------------------------------------------------ */

static int is_near(const msi_world *world, int rank) {
  const msi_identity *ranks = world->failure->ranks;
  return msi_identity_is_near(&ranks[world->rank], &ranks[rank]);
}

static int is_watched(const msi_world *world, int rank) {
  return msi_world_is_client(world, rank) != msi_world_is_client(world, world->rank) &&
         is_near(world, rank);
}

static int allocate(const msi_world *world, msi_failure *failure) {
  size_t n = 0;
  for (int r = 0; r < world->size; r++) n += is_watched(world, r) != 0;
  failure->dead = calloc((size_t)world->size, sizeof *failure->dead);
  failure->polls = calloc(n + 1, sizeof *failure->polls); /* never of 0 bytes */
  failure->watched = calloc(n + 1, sizeof *failure->watched);
  return failure->dead && failure->polls && failure->watched;
}

int msi_failure_open(msi_world *world, msi_identity *ranks) {
  msi_failure *failure = world->failure = calloc(1, sizeof *failure);
  if (!failure) free(ranks);
  if (failure) failure->ranks = ranks;
  if (!failure || !allocate(world, failure))
    return msi_error(MPISERVE_ENOMEM, "no memory to watch %d ranks", world->size);
  for (int r = 0; r < world->size; r++) {
    if (!is_watched(world, r)) continue;
    int i = failure->n_watched++;
    failure->watched[i] = r;
    failure->polls[i] = (struct pollfd){msi_peer_watch(&ranks[r]), POLLIN, 0};
  }
  return MPISERVE_OK;
}

void msi_failure_close(msi_world *world) {
  msi_failure *failure = world->failure;
  if (!failure) return;
  for (int i = 0; i < failure->n_watched; i++)
    if (failure->polls[i].fd >= 0) close(failure->polls[i].fd);
  free(failure->ranks);
  free(failure->dead);
  free(failure->polls);
  free(failure->watched);
  free(failure);
  world->failure = NULL;
}

/* Without a descriptor /proc has to be read. A negative one is skipped by poll(). */
static void look_at(const msi_world *world, int i) {
  msi_failure *failure = world->failure;
  int rank = failure->watched[i];
  struct pollfd *poll = &failure->polls[i];
  if (failure->dead[rank]) return;
  int has_ended = poll->fd >= 0 ? poll->revents != 0
                                : msi_peer_state_of(&failure->ranks[rank]) == MSI_PEER_DEAD;
  if (!has_ended) return;
  mark(failure, rank);
  if (poll->fd >= 0) close(poll->fd);
  poll->fd = -1;
}

int msi_failure_look(const msi_world *world) {
  msi_failure *failure = world->failure;
  if (!failure) return 0;
  int64_t now = msi_now();
  if (now < failure->next_ns) return failure->n_dead;
  failure->next_ns = now + LOOK_NS;
  if (!failure->n_watched) return failure->n_dead;
  if (poll(failure->polls, (nfds_t)failure->n_watched, 0) >= 0)
    for (int i = 0; i < failure->n_watched; i++) look_at(world, i);
  return failure->n_dead;
}

int msi_failure_sweep(const msi_world *world) {
  msi_failure *failure = world->failure;
  for (int r = 0; r < world->size; r++)
    if (!failure->dead[r] && msi_failure_state_of(world, r) == MSI_PEER_DEAD) mark(failure, r);
  return failure->n_dead;
}

int msi_failure_count(const msi_world *world) {
  return world->failure ? world->failure->n_dead : 0;
}

int msi_failure_is_dead(const msi_world *world, int rank) {
  return world->failure && world->failure->dead[rank];
}

msi_peer_state msi_failure_state_of(const msi_world *world, int rank) {
  if (world->failure->dead[rank]) return MSI_PEER_DEAD;
  if (!is_near(world, rank)) return MSI_PEER_UNKNOWN;
  return msi_peer_state_of(&world->failure->ranks[rank]);
}

/* ---- texts ------------------------------------------------------------------------------ */

static const char *const ROLES[] = {"simulation", "inference", "gateway", "trainer"};

void msi_failure_name(const msi_world *world, int rank, char *text, size_t bytes) {
  const msi_identity *who = &world->failure->ranks[rank];
  msi_text_append(text, bytes, "%s rank %d (pid %d on host %s)", ROLES[world->roles[rank]], rank,
                  who->pid, who->host);
}

void msi_failure_name_dead(const msi_world *world, char *text, size_t bytes) {
  int named = 0;
  for (int r = 0; r < world->size && named < MOST_NAMED; r++) {
    if (!msi_failure_is_dead(world, r)) continue;
    if (named++) msi_text_append(text, bytes, ", ");
    msi_failure_name(world, r, text, bytes);
  }
  int more = msi_failure_count(world) - named;
  if (more > 0) msi_text_append(text, bytes, " and %d more", more);
}
