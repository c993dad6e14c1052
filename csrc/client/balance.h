/* balance: which replica of a service will answer first, as far as one client can know.
 * No MPI, no clock. Used by one thread at a time. */
#ifndef MSI_BALANCE_H
#define MSI_BALANCE_H

#include <stdint.h>

/* What a client knows of one replica. */
typedef struct msi_load {
  int64_t rows;       /* of this client that it has not answered */
  double row_ns;      /* what a row costs there, smoothed */
  double others_rows; /* of other clients, in a batch with ours or left behind it; smoothed */
  double unseen;      /* time since it was asked last, in times that a request takes there */
  int known;          /* it has answered */
  int stale;          /* the next answer counts for more than what was known */
  int suspended;      /* it answered last that the service rests there */
} msi_load;

typedef struct msi_balance {
  msi_load *loads; /* of each replica; those to be preferred among equals come first */
  int n;
  int home;     /* where this client belongs */
  double leave; /* another must promise to answer in less than this part of the time */
} msi_balance;

/* loads are cleared. stickiness is as mpiserve_description says. client is any number that
 * differs from client to client: they try other replicas at different times. */
void msi_balance_init(msi_balance *balance, msi_load *loads, int n, int home, double stickiness,
                      int client);

/* Where a request of so many rows should go. What rests is tried now and then; if all do, the
 * one that was not asked for longest. */
int msi_balance_choose(const msi_balance *balance, int64_t rows);

/* Where it should go after replica i has said that it rests; there are others. */
int msi_balance_another(const msi_balance *balance, int i, int64_t rows);

/* It goes to replica i. */
void msi_balance_sent(msi_balance *balance, int i, int64_t rows);

/* So many rows of ours came back, or are not wanted there any more. */
static inline void msi_balance_ended(msi_load *load, int64_t rows) { load->rows -= rows; }

/* A batch of batch_rows, own_rows of them ours, took compute_ns; waiting rows were left in
 * the queue. */
void msi_balance_measure(msi_load *load, int64_t own_rows, int64_t batch_rows, int64_t waiting,
                         int64_t compute_ns);

#endif
