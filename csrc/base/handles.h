/* handles: which places of the table of sessions are open, and whose turn each is, so that a
 * handle of a session that is closed, or of one of its services, is an error and no crash. It is
 * the only registry of sessions. Threads open and close sessions of their own at any time, so a
 * check reads atomics of this table and no memory of a session. No MPI calls. */
#ifndef MSI_HANDLES_H
#define MSI_HANDLES_H

#include "mpiserve.h"

/* A place of the table, 0 to MPISERVE_MAX_SESSIONS - 1, which belongs to the caller and is not
 * open yet; or -1, with a text, if all are taken. And back: it is closed, and nobody's turn. */
int msi_handles_take(void);
void msi_handles_give(int place);

/* From now on the place is open, to a session of this role. */
void msi_handles_open(int place, int role);

/* The role of the session there; -1 if none is open. Any number is allowed. */
int msi_handles_role(int place);

/* Addresses in this memory are handles of the session too, until msi_handles_give(). */
void msi_handles_own(int place, const void *memory, size_t bytes);

/* The place of the session that owns an address, the begin of one of its pieces of so many bytes;
 * or -1. */
int msi_handles_owner(const void *address, size_t piece);

/* Begins the turn of a thread, if the place is open and nobody else's turn: 1, or 0 if it is
 * another's, or -1 if it is not open. The thread sees what the one before it has done. */
int msi_handles_enter(int place);
void msi_handles_leave(int place);

/* The communicator of an open session, until msi_handles_drop_comm(). Does the function say of
 * any that it is the same? It is called under a lock, so that none is freed meanwhile. */
void msi_handles_keep_comm(int place, MPI_Comm comm);
void msi_handles_drop_comm(int place);
int msi_handles_any_comm(int (*is_same)(MPI_Comm, MPI_Comm), MPI_Comm comm);

/* Was this process forked from one that has used sessions? They are none of the child's. */
int msi_handles_forked(void);

#endif
