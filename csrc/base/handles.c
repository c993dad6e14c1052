#include "base/handles.h"

#include <pthread.h>

msi_handle msi_handles[MPISERVE_MAX_SESSIONS];

static pthread_mutex_t comms_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_int forked;

/* A child that used its copy of a session would take the parent's answers, and its lane. */
static void forget_all(void) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++) {
    atomic_store(&msi_handles[i].state, MSI_HANDLE_FREE);
    atomic_store(&msi_handles[i].bytes, 0);
  }
  atomic_store(&forked, 1); /* MPI is the parent's too: there can be no session here */
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_all); }

int msi_handles_forked(void) { return atomic_load(&forked); }

int msi_handles_take(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++) {
    int state = MSI_HANDLE_FREE;
    if (atomic_compare_exchange_strong(&msi_handles[i].state, &state, MSI_HANDLE_TAKEN)) return i;
  }
  msi_error(MPISERVE_ENOMEM,
            "%d sessions of this process are open, and there is no room for more: close some",
            MPISERVE_MAX_SESSIONS);
  return -1;
}

/* Whoever takes the place sees all that was done in it. */
void msi_handles_give(int place) {
  atomic_store(&msi_handles[place].bytes, 0);
  atomic_store(&msi_handles[place].entered, 0);
  atomic_store(&msi_handles[place].state, MSI_HANDLE_FREE);
}

/* Pairs with the acquire of msi_handles_role(): the session is complete. */
void msi_handles_open(int place, int role) {
  atomic_store_explicit(&msi_handles[place].state, MSI_HANDLE_OPEN + role, memory_order_release);
}

void msi_handles_own(int place, const void *memory, size_t bytes) {
  atomic_store(&msi_handles[place].memory, (uintptr_t)memory);
  atomic_store(&msi_handles[place].bytes, bytes);
}

/* The size is read on both sides of the address, as the place may change hands in between: it is
 * 0 before a new address is stored, so that equal sizes belong to the address. */
static int owns(int place, uintptr_t address, size_t piece) {
  size_t bytes = atomic_load_explicit(&msi_handles[place].bytes, memory_order_acquire);
  uintptr_t memory = atomic_load_explicit(&msi_handles[place].memory, memory_order_acquire);
  size_t at = address - memory; /* before it: far behind it, unsigned */
  if (at >= bytes || at % piece) return 0;
  return bytes == atomic_load_explicit(&msi_handles[place].bytes, memory_order_relaxed);
}

int msi_handles_owner(const void *address, size_t piece) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++)
    if (owns(i, (uintptr_t)address, piece)) return i;
  return -1;
}

static void set_comm(int place, int has_comm, MPI_Comm comm) {
  pthread_mutex_lock(&comms_lock);
  msi_handles[place].has_comm = has_comm;
  msi_handles[place].comm = comm;
  pthread_mutex_unlock(&comms_lock);
}

void msi_handles_keep_comm(int place, MPI_Comm comm) { set_comm(place, 1, comm); }

void msi_handles_drop_comm(int place) { set_comm(place, 0, msi_handles[place].comm); }

int msi_handles_any_comm(int (*is_same)(MPI_Comm, MPI_Comm), MPI_Comm comm) {
  int any = 0;
  pthread_mutex_lock(&comms_lock);
  for (int i = 0; i < MPISERVE_MAX_SESSIONS && !any; i++)
    any = msi_handles[i].has_comm && is_same(msi_handles[i].comm, comm);
  pthread_mutex_unlock(&comms_lock);
  return any;
}
