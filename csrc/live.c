#include "live.h"

#include <stdatomic.h>
#include <stddef.h>

#include "error.h"

/* Sessions of several threads open and close at any time; each is used by one thread. */
static _Atomic(mpiserve_session *) table[MPISERVE_MAX_SESSIONS];

int msi_live_add(mpiserve_session *session) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++) {
    mpiserve_session *none = NULL;
    if (atomic_compare_exchange_strong(&table[i], &none, session)) return MPISERVE_OK;
  }
  return msi_error(MPISERVE_ENOMEM,
                   "%d sessions of this process are open, and there is no room "
                   "for more: close some",
                   MPISERVE_MAX_SESSIONS);
}

void msi_live_remove(const mpiserve_session *session) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++)
    if (msi_live_at(i) == session) atomic_store_explicit(&table[i], NULL, memory_order_relaxed);
}

/* Relaxed: a thread that was handed a session knows more of it than its address already. */
mpiserve_session *msi_live_at(int n) {
  return atomic_load_explicit(&table[n], memory_order_relaxed);
}

int msi_live_has(const mpiserve_session *session) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++)
    if (msi_live_at(i) == session) return 1;
  return 0;
}
