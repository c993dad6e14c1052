/* progress: the broker thread, which lets MPI make progress at an inference rank while its model
 * runs, for clients that Put and Get from other nodes, and notes when their requests arrive. One
 * thread at a time calls MPI: MPI_THREAD_SERIALIZED is enough, and asking for more would break
 * MPICH worlds whose other ranks ask for less. */
#ifndef MSI_PROGRESS_H
#define MSI_PROGRESS_H

#include <pthread.h>
#include <stdatomic.h>

#include "head/inbox.h"

typedef struct msi_progress {
  msi_window *window;
  msi_inbox *inboxes; /* of those clients: a list */
  pthread_t id;
  pthread_mutex_t mutex; /* held by whoever calls MPI; by the rank itself but for models */
  int started;
  int unanswered; /* batches that are open and requests that are held: what is being computed */
  int awake;      /* MPI is the thread's, and not the rank's */
  atomic_int stop;
  _Atomic int64_t polls;
} msi_progress;

/* Starts it, stopped, if this head has clients over RMA and MPI allows threads;
 * MPISERVE_THREAD=off in the environment keeps it from starting. */
int msi_progress_open(msi_progress *progress, msi_window *window);

/* Lets it note when the clients of an inbox ask. While it is stopped; the inbox outlives it. */
void msi_progress_watch(msi_progress *progress, msi_inbox *inbox);

/* While it is stopped. */
void msi_progress_close(msi_progress *progress);

/* The caller leaves MPI to the thread, and calls none, if anything is unanswered; the caller
 * takes it back, if the thread has it. */
static inline void msi_progress_start(msi_progress *progress) {
  if (progress->awake || !progress->unanswered) return;
  progress->awake = 1;
  /* No condition variable: waking by one is a system call in every batch, while an
   * uncontended mutex is two atomic operations. */
  if (progress->started) pthread_mutex_unlock(&progress->mutex);
}

static inline void msi_progress_stop(msi_progress *progress) {
  if (!progress->awake) return;
  progress->awake = 0;
  if (progress->started) pthread_mutex_lock(&progress->mutex);
}

#endif
