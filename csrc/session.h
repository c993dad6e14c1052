/* session: what a session consists of, for the files of public functions. */
#ifndef MSI_SESSION_H
#define MSI_SESSION_H

#include "client.h"
#include "serving.h"

struct mpiserve_session {
  msi_world world;
  msi_window window;
  msi_client client;
  msi_serving serving;
  mpiserve_description *descriptions; /* inference ranks: what was published */
  int published;                      /* inference ranks: how many services; 0: not yet */
  int broken;                         /* opening failed on every rank: nobody waits for us */
};

/* Is it open, on a rank of this role? */
int msi_check_role(const mpiserve_session *session, int role);

/* Is it open, on an inference rank, and published? */
int msi_check_serving(const mpiserve_session *session);

/* MPISERVE_EARG, with the argument's name. */
int msi_null_argument(const char *name);

#endif
