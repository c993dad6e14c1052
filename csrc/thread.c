#include "thread.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "error.h"

/* Between two looks. Measured over TCP: 0.2 to 1 ms for a small Put into a rank
 * that computes, while a busy loop is worse on few cores and steals from the model. */
static const struct timespec PERIOD = {0, 100000};

static int look(msi_thread *thread) {
  pthread_mutex_lock(&thread->mutex);
  while (!thread->awake && !thread->stop) pthread_cond_wait(&thread->changed, &thread->mutex);
  int stop = thread->stop;
  if (!stop) {
    msi_window_nudge(thread->window); /* an error will meet the rank's own next call */
    thread->polls++;
  }
  pthread_mutex_unlock(&thread->mutex);
  return !stop;
}

static void *loop(void *argument) {
  while (look(argument)) nanosleep(&PERIOD, NULL);
  return NULL;
}

int msi_thread_open(msi_thread *thread, msi_window *window) {
  const char *setting = getenv("MPISERVE_THREAD");
  *thread = (msi_thread){.window = window};
  if (setting && !strcmp(setting, "off")) return MPISERVE_OK;
  if (window->world->thread_level < MPI_THREAD_SERIALIZED) return MPISERVE_OK;
  pthread_mutex_init(&thread->mutex, NULL);
  pthread_cond_init(&thread->changed, NULL);
  if (pthread_create(&thread->id, NULL, loop, thread))
    return msi_error(MPISERVE_ENOMEM, "the broker thread could not be started");
  thread->started = 1;
  return MPISERVE_OK;
}

static void tell(msi_thread *thread, int *flag, int value) {
  if (!thread->started) return;
  pthread_mutex_lock(&thread->mutex);
  *flag = value;
  pthread_cond_signal(&thread->changed);
  pthread_mutex_unlock(&thread->mutex);
}

void msi_thread_wake(msi_thread *thread) { tell(thread, &thread->awake, 1); }

/* The thread calls MPI only while it holds the mutex: once we have had it, we
 * are alone. */
void msi_thread_rest(msi_thread *thread) { tell(thread, &thread->awake, 0); }

void msi_thread_close(msi_thread *thread) {
  if (!thread->started) return;
  tell(thread, &thread->stop, 1);
  pthread_join(thread->id, NULL);
  pthread_cond_destroy(&thread->changed);
  pthread_mutex_destroy(&thread->mutex);
  thread->started = 0;
}
