/* rounds: the batches of a reproducible service. A round holds one request of each client, in the
 * order of their ranks in the world, and nothing else is in a batch with them: what a batch holds
 * depends on what was asked, never on when. A piece of a request is as large as a batch, and is
 * one, up to the last piece, with which the client takes part in a round. Requests of gateways have
 * rounds of their own. No MPI calls. */
#ifndef MSI_ROUNDS_H
#define MSI_ROUNDS_H

#include "head/broker.h"

/* Where a batch is one request, there is no need of rounds. */
static inline int msi_rounds_are_on(const msi_broker *broker) {
  return broker->policy.special == MSI_IN_ROUNDS && !broker->policy.together;
}

/* Shall a batch be closed now? Not for a model that has no room. If a round is complete, its
 * requests are marked. MSI_CLOSED_DELAY: the round is not complete, and waits no longer: for
 * clients that have not asked for max_delay, or that can ask only once others have given their rows
 * back. It is counted, and says whom it lacks. */
msi_close_reason msi_rounds_decide(msi_broker *broker, int64_t now_ns);

/* How many requests of the round are in the queue. */
uint32_t msi_rounds_left(msi_broker *broker);

/* None is in a round any more. */
void msi_rounds_forget(msi_broker *broker);

/* A request leaves the queue without a batch: counts it, and says whose it was. */
void msi_rounds_lose(msi_broker *broker, const msi_entry *entry);

/* Has a round of one of n services waited for so long? text, of MPISERVE_TEXT_SIZE bytes, says for
 * whom. */
int msi_rounds_waiting(const msi_broker *brokers, int n, int64_t limit_ns, char *text);

/* Moves the next requests of the round into the batch, as many as fit. */
int msi_rounds_collect(msi_broker *broker);

#endif
