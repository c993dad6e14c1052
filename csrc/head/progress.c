#include "head/progress.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"

/* Between two looks while a model runs, and the longest pause while none does.
 * Measured over TCP: 0.2 to 1 ms for a small Put into a rank that computes, while a
 * busy loop is worse on few cores and steals from the model. */
enum { PERIOD_NS = 100000, IDLE_NS = 800000 };

/* A deadline that comes over rma is counted from when its request was seen. */
static void note_arrivals(const msi_thread *thread) {
  int64_t now = msi_now();
  for (msi_port *port = thread->ports; port; port = port->next)
    for (uint32_t lane = 0; msi_port_rung(port, &lane); lane++) msi_port_note(port, lane, now);
}

/* The mutex is free while a model runs, and only then. */
static int look(msi_thread *thread) {
  if (pthread_mutex_trylock(&thread->mutex)) return 0;
  msi_window_nudge(thread->window); /* an error will meet the rank's own next call */
  note_arrivals(thread);
  thread->polls++;
  pthread_mutex_unlock(&thread->mutex);
  return 1;
}

static void *loop(void *argument) {
  msi_thread *thread = argument;
  long pause = PERIOD_NS;
  while (!atomic_load_explicit(&thread->stop, memory_order_relaxed)) {
    nanosleep(&(struct timespec){0, pause}, NULL);
    pause = look(thread) ? PERIOD_NS : pause < IDLE_NS ? 2 * pause : IDLE_NS;
  }
  return NULL;
}

int msi_thread_open(msi_thread *thread, msi_window *window) {
  const char *setting = getenv("MPISERVE_THREAD");
  *thread = (msi_thread){.window = window};
  if (setting && !strcmp(setting, "off")) return MPISERVE_OK;
  if (window->world->thread_level < MPI_THREAD_SERIALIZED) return MPISERVE_OK;
  pthread_mutex_init(&thread->mutex, NULL);
  pthread_mutex_lock(&thread->mutex);
  if (pthread_create(&thread->id, NULL, loop, thread))
    return msi_error(MPISERVE_ENOMEM, "the broker thread could not be started");
  thread->started = 1;
  return MPISERVE_OK;
}

void msi_thread_watch(msi_thread *thread, msi_port *port) {
  port->next = thread->ports;
  thread->ports = port;
}

void msi_thread_close(msi_thread *thread) {
  if (!thread->started) return;
  atomic_store_explicit(&thread->stop, 1, memory_order_relaxed);
  pthread_join(thread->id, NULL);
  pthread_mutex_unlock(&thread->mutex);
  pthread_mutex_destroy(&thread->mutex);
  thread->started = 0;
}
