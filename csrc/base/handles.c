#include "base/handles.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "base/error.h"

/* Sessions of several threads open and close at any time; each is used by one thread. */
static _Atomic(mpiserve_session *) table[MPISERVE_MAX_SESSIONS];

static atomic_int forked;

/* A child that used its copy of a session would take the parent's answers, and its lane. */
static void forget_all(void) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++) atomic_store(&table[i], NULL);
  atomic_store(&forked, 1); /* MPI is the parent's too: there can be no session here */
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_all); }

int msi_handles_forked(void) { return atomic_load(&forked); }

int msi_handles_add(mpiserve_session *session) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++) {
    mpiserve_session *none = NULL;
    if (atomic_compare_exchange_strong(&table[i], &none, session)) return MPISERVE_OK;
  }
  return msi_error(MPISERVE_ENOMEM,
                   "%d sessions of this process are open, and there is no room "
                   "for more: close some",
                   MPISERVE_MAX_SESSIONS);
}

void msi_handles_remove(const mpiserve_session *session) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++)
    if (msi_handles_at(i) == session) atomic_store_explicit(&table[i], NULL, memory_order_relaxed);
}

/* Relaxed: a thread that was handed a session knows more of it than its address already. */
mpiserve_session *msi_handles_at(int n) {
  return atomic_load_explicit(&table[n], memory_order_relaxed);
}

int msi_handles_has(const mpiserve_session *session) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++)
    if (msi_handles_at(i) == session) return 1;
  return 0;
}
