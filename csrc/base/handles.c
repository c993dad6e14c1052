#include "base/handles.h"

#include <pthread.h>
#include <sched.h>

msi_handle msi_handles[MPISERVE_MAX_SESSIONS];

static pthread_mutex_t take_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t comms_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_int forked;

/* A child that used its copy of a session would take the parent's answers, and its lane. */
static void forget_all(void) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++) {
    atomic_store(&msi_handles[i].state, MSI_HANDLE_FREE);
    atomic_store(&msi_handles[i].bytes, 0);
    atomic_store(&msi_handles[i].readers, 0); /* threads of the parent only */
  }
  atomic_store(&forked, 1); /* MPI is the parent's too: there can be no session here */
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_all); }

int msi_handles_forked(void) { return atomic_load(&forked); }

/* The next free place after the one that was taken last; -1: there is none. */
static int take_next(void) {
  static int last = MPISERVE_MAX_SESSIONS - 1;
  for (int i = 1; i <= MPISERVE_MAX_SESSIONS; i++) {
    int index = (last + i) % MPISERVE_MAX_SESSIONS, state = MSI_HANDLE_FREE;
    if (!atomic_compare_exchange_strong(&msi_handles[index].state, &state, MSI_HANDLE_TAKEN))
      continue;
    return last = index;
  }
  return -1;
}

int msi_handles_take(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  pthread_mutex_lock(&take_lock);
  int index = take_next();
  pthread_mutex_unlock(&take_lock);
  if (index >= 0) return index;
  msi_error(MPISERVE_ENOMEM,
            "%d sessions of this process are open, and there is no room for more: close some",
            MPISERVE_MAX_SESSIONS);
  return -1;
}

/* Whoever takes the place sees all that was done in it. */
void msi_handles_give(int index) { atomic_store(&msi_handles[index].state, MSI_HANDLE_FREE); }

/* Pairs with the acquire of msi_handles_role(): the session is complete. */
void msi_handles_open(int index, int role, int rank) {
  atomic_store_explicit(&msi_handles[index].rank, rank, memory_order_relaxed);
  atomic_store_explicit(&msi_handles[index].state, MSI_HANDLE_OPEN + role, memory_order_release);
}

/* Before the session is freed and the turn ends. So a thread that found the place open before, and
 * enters when the turn has ended, finds it closed when it looks again. */
void msi_handles_close(int index) {
  atomic_store(&msi_handles[index].state, MSI_HANDLE_TAKEN);
  atomic_store(&msi_handles[index].bytes, 0);
  while (atomic_load(&msi_handles[index].readers)) sched_yield();
}

/* The size last: until then it is 0, and the place owns nothing. */
void msi_handles_own(int index, const void *memory, size_t bytes) {
  atomic_store(&msi_handles[index].memory, (uintptr_t)memory);
  atomic_store(&msi_handles[index].bytes, bytes);
}

/* The size is read on both sides of the address, as the place may change hands in between: it is
 * 0 before a new address is stored, so that equal sizes belong to the address. */
int msi_handles_owns(int index, const void *address, size_t piece) {
  size_t bytes = atomic_load_explicit(&msi_handles[index].bytes, memory_order_acquire);
  uintptr_t memory = atomic_load_explicit(&msi_handles[index].memory, memory_order_acquire);
  size_t at = (uintptr_t)address - memory; /* before it: far behind it, unsigned */
  if (at >= bytes || at % piece) return 0;
  return bytes == atomic_load_explicit(&msi_handles[index].bytes, memory_order_relaxed);
}

int msi_handles_owner(const void *address, size_t piece) {
  for (int i = 0; i < MPISERVE_MAX_SESSIONS; i++)
    if (msi_handles_owns(i, address, piece)) return i;
  return -1;
}

static void set_comm(int index, int has_comm, MPI_Comm comm) {
  pthread_mutex_lock(&comms_lock);
  msi_handles[index].has_comm = has_comm;
  msi_handles[index].comm = comm;
  pthread_mutex_unlock(&comms_lock);
}

void msi_handles_keep_comm(int index, MPI_Comm comm) { set_comm(index, 1, comm); }

void msi_handles_drop_comm(int index) { set_comm(index, 0, msi_handles[index].comm); }

int msi_handles_any_comm(int (*is_same)(MPI_Comm, MPI_Comm), MPI_Comm comm) {
  int any = 0;
  pthread_mutex_lock(&comms_lock);
  for (int i = 0; i < MPISERVE_MAX_SESSIONS && !any; i++)
    any = msi_handles[i].has_comm && is_same(msi_handles[i].comm, comm);
  pthread_mutex_unlock(&comms_lock);
  return any;
}
