#include "mpi/meeting.h"

#include "mpi/failure.h"
#include "mpi/pair.h"

enum { MEETINGS = 2 };

static const int64_t SWEEP_NS = 100000000, SECOND_MEETING_NS = 3000000000;

/* Has everybody come? */
static int look(msi_world *world, int *done) {
  if (!world->pair) return MPI_Test(&world->meeting, done, MPI_STATUS_IGNORE);
  int theirs = 0;
  *done = msi_pair_has_come(world->pair);
  if (!*done) return 0;
  msi_pair_read(world->pair, &theirs, sizeof theirs);
  world->passers = world->passing + theirs;
  return 0;
}

/* Looks at all ranks of the node now and then, as MPI may never say that one is dead. */
static int meeting_is_over(msi_world *world, int64_t deadline) {
  msi_wait wait = {0};
  int64_t next = 0;
  for (;;) {
    int done, failed = look(world, &done);
    if (failed) return msi_failure_note(world, world->comm, failed), 0;
    if (done) return 1;
    if (!msi_wait_pause(&wait, &world->backoff, NULL)) continue;
    int64_t now = msi_now();
    if (now > deadline) return 0;
    if (now < next) continue;
    if (msi_failure_sweep(world)) return 0;
    next = now + SWEEP_NS;
  }
}

/* Each says whether it is here only in passing, as its time is over. */
static int begin_meeting(msi_world *world, int64_t deadline) {
  if (world->meeting != MPI_REQUEST_NULL) return 1;
  world->passing = msi_now() > deadline;
  if (world->pair) return msi_pair_post(world->pair, &world->passing, sizeof world->passing), 1;
  return !MPI_Iallreduce(&world->passing, &world->passers, 1, MPI_INT, MPI_SUM, world->comm,
                         &world->meeting);
}

/* After the first meeting a rank knows that all have come, and after the second one that all know
 * it: a rank whose deadline passed in between must not be waited for in a call that has no end.
 * Those that are here come to the second one at once, so that it has a deadline of its own. */
int msi_meeting_wait(msi_world *world, int64_t deadline) {
  while (world->met < MEETINGS) {
    if (msi_failure_sweep(world)) return 0; /* before MPI finds out, and prints lines about it */
    if (!begin_meeting(world, deadline) || !meeting_is_over(world, deadline)) return 0;
    world->met++;
    if (world->passers && deadline != INT64_MAX) return 0;
    int64_t soon = msi_now() + SECOND_MEETING_NS;
    if (deadline < soon) deadline = soon;
  }
  return 1;
}
