#define _GNU_SOURCE
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
static void note_arrivals(const msi_progress *progress) {
  int64_t now = msi_now();
  for (msi_inbox *inbox = progress->inboxes; inbox; inbox = inbox->next)
    for (uint32_t lane = 0; msi_inbox_rung(inbox, &lane); lane++) msi_inbox_note(inbox, lane, now);
}

/* The mutex is free while a model runs, and only then. */
static int look(msi_progress *progress) {
  if (pthread_mutex_trylock(&progress->mutex)) return 0;
  msi_window_progress(progress->window); /* an error will meet the rank's own next call */
  note_arrivals(progress);
  progress->polls++;
  pthread_mutex_unlock(&progress->mutex);
  return 1;
}

static void *loop(void *argument) {
  msi_progress *progress = argument;
  long pause = PERIOD_NS;
  while (!atomic_load_explicit(&progress->stop, memory_order_relaxed)) {
    nanosleep(&(struct timespec){0, pause}, NULL);
    pause = look(progress) ? PERIOD_NS : pause < IDLE_NS ? 2 * pause : IDLE_NS;
  }
  return NULL;
}

int msi_progress_open(msi_progress *progress, msi_window *window) {
  const char *setting = getenv("MPISERVE_THREAD");
  *progress = (msi_progress){.window = window};
  if (setting && !strcmp(setting, "off")) return MPISERVE_OK;
  if (window->world->thread_level < MPI_THREAD_SERIALIZED) return MPISERVE_OK;
  pthread_mutex_init(&progress->mutex, NULL);
  pthread_mutex_lock(&progress->mutex);
  if (pthread_create(&progress->id, NULL, loop, progress))
    return msi_error(MPISERVE_ENOMEM, "the broker thread could not be started");
  progress->started = 1;
  return MPISERVE_OK;
}

void msi_progress_watch(msi_progress *progress, msi_inbox *inbox) {
  inbox->next = progress->inboxes;
  progress->inboxes = inbox;
}

void msi_progress_close(msi_progress *progress) {
  if (!progress->started) return;
  atomic_store_explicit(&progress->stop, 1, memory_order_relaxed);
  pthread_join(progress->id, NULL);
  pthread_mutex_unlock(&progress->mutex);
  pthread_mutex_destroy(&progress->mutex);
  progress->started = 0;
}
