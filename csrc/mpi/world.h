/* world: who is who. The partition of the world into roles, the nodes, and the
 * registry of services. Every call here is collective unless it says local. */
#ifndef MSI_WORLD_H
#define MSI_WORLD_H

#include "base/wait.h"
#include "mpiserve.h"

/* What a head published, and where it is. A rank is the head of each of its services. */
typedef struct msi_head {
  int rank;          /* of the world */
  int service_index; /* among the services of its rank: 0, 1, ... */
  mpiserve_description description;
} msi_head;

typedef struct msi_pair msi_pair;

typedef struct msi_world {
  MPI_Comm comm;  /* our own copy of the world; of a pair this process alone */
  MPI_Comm peers; /* the ranks of this rank's role */
  MPI_Comm node;  /* the ranks of this node */
  msi_pair *pair; /* of a session of two processes that have no common world; NULL: of a world */
  int rank, size;
  int role;
  int thread_level;
  int64_t launched_ns, opened_ns; /* when this rank came to open, and when all had come */
  int force_rma, force_shared;    /* MPISERVE_TRANSPORT */
  int profile;                    /* MPISERVE_PROFILE is not off */
  int measured;                   /* that, or MPISERVE_METRICS: replies have times */
  int captured;                   /* MPISERVE_CAPTURE is not off: requests have time steps */
  int64_t trace_events;           /* that a trace has room for; 0: there is none */
  int64_t run;                    /* a number of this session, the same on all ranks */
  int tolerant;                   /* MPI goes on after a death, and tells of it */
  int n_simulation;               /* ranks of this role in the world */
  int n_clients;                  /* those, and guests */
  uint8_t *roles;                 /* by world rank */
  int *nodes;                     /* by world rank: the lowest world rank of its node */
  msi_backoff backoff;
  int votes[2]; /* of msi_world_agree(): MPI may write there after a time-out */
  int n_heads;
  msi_head *heads;             /* in the order of the world, those of a rank side by side; after
                                  msi_world_publish() */
  struct msi_failure *failure; /* who has died: mpi/failure.h */
  int met;                     /* of the meetings at the end, how many are over */
  MPI_Request meeting;         /* the one that goes on, or MPI_REQUEST_NULL */
  int passing, passers;        /* is this rank there in passing; how many are */
} msi_world;

/* MPISERVE_ESTATE if a session of the same ranks is open in this process. Local. */
int msi_world_check_closed(MPI_Comm comm);

/* Exchanges roles and checks that versions and thread levels fit. code and text
 * are this rank's own failure, or MPISERVE_OK. pair is NULL, or there is no comm, and the world
 * owns it from now on. On failure world is freed. */
int msi_world_open(msi_world *world, MPI_Comm comm, msi_pair *pair, int role, int code,
                   const char *text);

/* Gathers the descriptions of all inference ranks at every rank; simulation ranks
 * have none. */
int msi_world_publish(msi_world *world, int n, const mpiserve_description *descriptions);

/* Waits for everybody to come to the end of open, as long as open may take; an error of one rank
 * (code, and its last message) becomes the error of all, with its text. */
int msi_world_agree(msi_world *world, int code);

/* Gathers so many bytes of each rank at every rank, at open or publish, as what says. After
 * MPISERVE_ETIMEOUT MPI may still write to all. */
int msi_world_gather(msi_world *world, const void *mine, void *all, size_t bytes, const char *what);

/* Seconds that a close waits for others if nobody says otherwise: MPISERVE_CLOSE_TIMEOUT. Local. */
double msi_world_close_limit(void);

/* Frees all; safe on a world that failed to open. */
void msi_world_close(msi_world *world);

/* Does a rank send requests? Local. */
static inline int msi_world_is_client(const msi_world *world, int rank) {
  return world->roles[rank] != MPISERVE_INFERENCE;
}

/* Is it a guest: a client that is no simulation rank, and for which nobody waits? Local. */
static inline int msi_world_is_guest(const msi_world *world, int rank) {
  return world->roles[rank] == MPISERVE_GATEWAY || world->roles[rank] == MPISERVE_TRAINER;
}

/* Position of a world rank among the ranks of its role. Local. */
int msi_world_index(const msi_world *world, int rank);

/* Turns a failed MPI call into a code and a text. Local. */
int msi_mpi_error(int mpi_code, const char *call);

#endif
