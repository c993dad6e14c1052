/* handles: which places of the table of sessions are open, and whose turn each is, so that a
 * handle of a session that is closed, or of one of its services, is an error and no crash. It is
 * the only registry of sessions. Threads open and close sessions of their own at any time, so a
 * check reads atomics of this table and no memory of a session. No MPI calls. */
#ifndef MSI_HANDLES_H
#define MSI_HANDLES_H

#include <stdatomic.h>

#include "base/error.h"
#include "mpiserve.h"

/* Closed, being opened or closed by whoever took it, or open: MSI_HANDLE_OPEN + role. */
enum { MSI_HANDLE_FREE, MSI_HANDLE_TAKEN, MSI_HANDLE_OPEN };

enum { MSI_ANY_ROLE = -1 };
enum { MSI_CACHE_LINE = 64 };

/* Here for the functions below, which every public function calls. A thread that enters its session
 * takes no cache line from threads in others, or from those that look for an owner. */
typedef struct msi_handle {
  _Alignas(MSI_CACHE_LINE) atomic_int state;
  atomic_int entered;
  atomic_int readers; /* threads that read what never changes, beside a turn */
  atomic_int rank;    /* in the world */
  int has_comm;       /* these two: under a lock */
  MPI_Comm comm;
  _Alignas(MSI_CACHE_LINE) _Atomic uintptr_t memory;
  _Atomic size_t bytes; /* 0: it owns none */
} msi_handle;

extern msi_handle msi_handles[MPISERVE_MAX_SESSIONS];

/* The index of a place in the table, 0 to MPISERVE_MAX_SESSIONS - 1, which belongs to the caller
 * and is not open yet; or -1, with a text, if all are taken. The places go round, so that the
 * handle of a closed session stays an error for long. And back. */
int msi_handles_take(void);
void msi_handles_give(int index);

/* From now on the place is open, to a session of this role and rank. */
void msi_handles_open(int index, int role, int rank);

/* From now on it is not open, and owns no memory. Waits until nobody reads in it. The caller has
 * the turn: it frees the session, leaves, and gives the place. */
void msi_handles_close(int index);

/* The role of a session; negative if it is not open. */
static inline int msi_handles_role(const msi_handle *handle) {
  return atomic_load_explicit(&handle->state, memory_order_acquire) - MSI_HANDLE_OPEN;
}

/* Is it open, to a session of this role or MSI_ANY_ROLE? */
static inline int msi_handles_is_open(const msi_handle *handle, int role) {
  int its = msi_handles_role(handle);
  return role == MSI_ANY_ROLE ? its >= 0 : its == role;
}

/* Addresses in this memory are handles of the session too, until msi_handles_close(). */
void msi_handles_own(int index, const void *memory, size_t bytes);

/* The place of the session that owns an address, the begin of one of its pieces of so many bytes;
 * or -1. Does this one own it? That stays so during a turn in the session. */
int msi_handles_owner(const void *address, size_t piece);
int msi_handles_owns(int index, const void *address, size_t piece);

/* Pairs with the acquire of msi_handles_enter(). */
static inline void msi_handles_leave(msi_handle *handle) {
  atomic_store_explicit(&handle->entered, 0, memory_order_release);
}

/* Begins the turn of a thread, if the place is open to this role or MSI_ANY_ROLE, and nobody
 * else's turn: 1, or 0 if it is another's, or -1 if it is not open to it. The thread sees what the
 * one before it has done. */
static inline int msi_handles_enter(msi_handle *handle, int role) {
  if (!msi_handles_is_open(handle, role)) return -1;
  if (atomic_exchange_explicit(&handle->entered, 1, memory_order_acquire)) return 0;
  /* It may have closed since it was found open, or be another session's by now. A close is a turn
   * that begins with a store of the state: this turn comes later and sees it, or keeps it out. */
  if (msi_handles_is_open(handle, role)) return 1;
  msi_handles_leave(handle);
  return -1;
}

/* Begins to read what never changes while a session is open: any number of threads may, also beside
 * a turn. 1, or 0 if the place is not open to this role or MSI_ANY_ROLE. Short: a close waits for
 * its end. The order of all four accesses, the two here and the two of msi_handles_close(), is one
 * for all threads (seq_cst): either the close finds the reader, or the reader finds it closed. */
static inline void msi_handles_read_end(msi_handle *handle) {
  atomic_fetch_sub_explicit(&handle->readers, 1, memory_order_release);
}

static inline int msi_handles_read(msi_handle *handle, int role) {
  atomic_fetch_add(&handle->readers, 1);
  int its = atomic_load(&handle->state) - MSI_HANDLE_OPEN;
  if (role == MSI_ANY_ROLE ? its >= 0 : its == role) return 1;
  msi_handles_read_end(handle);
  return 0;
}

/* The communicator of an open session, until msi_handles_drop_comm(). Does the function say of
 * any that it is the same? It is called under a lock, so that none is freed meanwhile. */
void msi_handles_keep_comm(int index, MPI_Comm comm);
void msi_handles_drop_comm(int index);
int msi_handles_any_comm(int (*is_same)(MPI_Comm, MPI_Comm), MPI_Comm comm);

/* Was this process forked from one that has used sessions? They are none of the child's. */
int msi_handles_forked(void);

#endif
