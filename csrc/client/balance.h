/* balance: which replica of a service will answer first, as far as one client can know.
 * No MPI, no clock. Used by one thread at a time. */
#ifndef MSI_BALANCE_H
#define MSI_BALANCE_H

#include <stdint.h>

/* What a client knows of one replica. */
typedef struct msi_load {
  int64_t rows;       /* of this client, not answered yet */
  double row_ns;      /* what a row costs there, smoothed */
  double others_rows; /* of other clients, in a batch with ours or left behind it; smoothed */
  double unseen;      /* time since the last request to it, in times that a request takes there */
  int known;          /* it has answered */
  int stale;          /* the next answer counts for more than what was known */
  int suspended;      /* by its last answer the service is suspended there; or it is dead */
  int dead;           /* never to be tried again */
} msi_load;

typedef struct msi_balance {
  msi_load *loads; /* of each replica; among equals the first is preferred */
  int n;
  int home;     /* the home replica of this client */
  double leave; /* another replica must answer in less than this part of the time */
} msi_balance;

/* loads are cleared. stickiness is as mpiserve_description says. client is any number that
 * differs from client to client: they try other replicas at different times. */
void msi_balance_init(msi_balance *balance, msi_load *loads, int n, int home, double stickiness,
                      int client);

/* The replica for a request of so many rows. A suspended one is tried now and then; if all are
 * suspended, the one without a request for longest. If all are dead, the home. */
int msi_balance_choose(const msi_balance *balance, int64_t rows);

/* The replica for a request after the service was found suspended at replica i, or that is dead;
 * -1: all others are dead. */
int msi_balance_another(const msi_balance *balance, int i, int64_t rows);

/* Replica i is dead. Another one becomes home, if it was that and another one lives. */
void msi_balance_lose(msi_balance *balance, int i);

/* A request of so many rows goes to replica i. */
void msi_balance_sent(msi_balance *balance, int i, int64_t rows);

/* So many rows of this client have been answered there, or are no longer wanted. */
static inline void msi_balance_ended(msi_load *load, int64_t rows) { load->rows -= rows; }

/* A batch of batch_rows, own_rows of them ours, took compute_ns; waiting rows were left in
 * the queue. */
void msi_balance_measure(msi_load *load, int64_t own_rows, int64_t batch_rows, int64_t waiting,
                         int64_t compute_ns);

#endif
