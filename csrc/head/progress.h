/* thread: lets MPI make progress at an inference rank while its model runs, for
 * the sake of clients that Put and Get from other nodes, and notes when they ask. One thread at a
 * time calls MPI: MPI_THREAD_SERIALIZED is enough, and asking for more would break MPICH worlds
 * whose other ranks ask for less. */
#ifndef MSI_THREAD_H
#define MSI_THREAD_H

#include <pthread.h>
#include <stdatomic.h>

#include "head/inbox.h"

typedef struct msi_thread {
  msi_window *window;
  msi_port *ports; /* of those clients: a list */
  pthread_t id;
  pthread_mutex_t mutex; /* held by whoever calls MPI; by the rank itself but for models */
  int started;
  int owed;  /* batches that are open and requests that are held: what is being computed */
  int awake; /* MPI is the thread's, and not the rank's */
  atomic_int stop;
  _Atomic int64_t polls;
} msi_thread;

/* Starts it at rest if this head has clients over RMA and MPI allows threads;
 * MPISERVE_THREAD=off in the environment keeps it from starting. */
int msi_thread_open(msi_thread *thread, msi_window *window);

/* Lets it note when the clients of a port ask. At rest; the port outlives it. */
void msi_thread_watch(msi_thread *thread, msi_port *port);

/* At rest. */
void msi_thread_close(msi_thread *thread);

/* The caller leaves MPI to the thread, and calls none, if anything is owed; the caller takes
 * it back, if the thread has it. */
static inline void msi_thread_wake(msi_thread *thread) {
  if (thread->awake || !thread->owed) return;
  thread->awake = 1;
  /* No condition variable: waking by one is a system call in every batch, while an
   * uncontended mutex is two atomic operations. */
  if (thread->started) pthread_mutex_unlock(&thread->mutex);
}

static inline void msi_thread_rest(msi_thread *thread) {
  if (!thread->awake) return;
  thread->awake = 0;
  if (thread->started) pthread_mutex_lock(&thread->mutex);
}

#endif
