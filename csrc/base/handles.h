/* live: the sessions of this process that are open, so that a handle of one that is
 * closed is an error and no crash. No MPI. */
#ifndef MSI_HANDLES_H
#define MSI_HANDLES_H

#include "mpiserve.h"

/* Fails when MPISERVE_MAX_SESSIONS are open. */
int msi_handles_add(mpiserve_session *session);
void msi_handles_remove(const mpiserve_session *session);

/* Was this process forked from one that has used sessions? They are none of the child's. */
int msi_handles_forked(void);

/* The n-th place of the table: NULL where no session is. */
mpiserve_session *msi_handles_at(int n);
int msi_handles_has(const mpiserve_session *session);

#endif
