/* session: the parts of a session, for the files of public functions. */
#ifndef MSI_SESSION_H
#define MSI_SESSION_H

#include "base/handles.h"
#include "base/metrics.h"
#include "client/client.h"
#include "head/serving.h"

struct mpiserve_session {
  msi_world world;
  msi_window window;
  msi_client client;
  msi_serving serving;
  mpiserve_description *descriptions; /* inference ranks: what was published */
  int published;                      /* inference ranks: how many services; 0: not yet */
  msi_profile profile;
  msi_shown shown;
  msi_clock clock; /* of this node, as measured last */
  int broken;      /* opening failed on every rank: no rank waits */
  int left;        /* closed; the rest is freed in MPI_Finalize */
};

/* All that one process can have, by their place in base/handles: a handle is an address here. */
extern mpiserve_session msi_sessions[MPISERVE_MAX_SESSIONS];

/* Begins to measure, if the session is profiled or others are to see more than counters. */
int msi_open_profile(mpiserve_session *session, int n_clients, int n_heads);

/* ---- access.c ----------------------------------------------------------------------- */

/* A call that changes a session has it to itself until it returns: a second thread would corrupt
 * it, so that it gets an error. Declare one before msi_enter(); it leaves at the end of its block.
 * An attribute of GCC, Clang and the compilers that follow them. */
#define MSI_TURN __attribute__((cleanup(msi_leave))) msi_handle *
void msi_leave(msi_handle *const *turn);

/* If the session is open, on a rank of this role or MSI_ANY_ROLE, and no other thread is in it,
 * *turn becomes its handle. The same on an inference rank that has published; for the session of a
 * service. After an error of the latter two there may be a turn. */
int msi_enter(mpiserve_session *session, int role, msi_handle **turn);
int msi_enter_serving(mpiserve_session *session, msi_handle **turn);
int msi_enter_service(const mpiserve_service *service, msi_handle **turn);

/* For what never changes while the session is open, without a turn: any thread may read it, and a
 * close waits for the end of the block. Errors as of msi_enter(). */
#define MSI_READER __attribute__((cleanup(msi_read_end))) msi_handle *
void msi_read_end(msi_handle *const *reader);
int msi_read(const mpiserve_session *session, int role, msi_handle **reader);
int msi_read_service(const mpiserve_service *service, msi_handle **reader);

/* MPISERVE_ESTATE: what says which handle is not open; or the session is another process's. */
int msi_not_open(const char *what);

/* MPISERVE_EARG if timeout is not a number. */
int msi_check_timeout(double timeout);

/* MPISERVE_EARG, with the argument's name. */
int msi_null_argument(const char *name);

#endif
