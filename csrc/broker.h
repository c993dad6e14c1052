/* broker: the inference side. Takes what clients ask, forms batches, answers. */
#ifndef MSI_BROKER_H
#define MSI_BROKER_H

#include "batch.h"
#include "port.h"
#include "thread.h"

typedef struct msi_broker {
  const msi_world *world;
  msi_window *window;
  const mpiserve_description *description;
  msi_policy policy;
  msi_port ports[MSI_TRANSPORTS];
  msi_thread thread;
  msi_queue queue;    /* requests that wait for a batch */
  msi_queue tenants;  /* requests for leases that wait for room */
  uint32_t asked;     /* lanes with a request in the queue */
  uint32_t able;      /* lanes that count in the census */
  uint32_t remaining; /* lanes whose client has not left */
  int failed_rank;    /* of a simulation rank that ended with an error, or -1 */
  char failed_text[MPISERVE_TEXT_SIZE];
  int open; /* a batch was handed out and not answered */
  mpiserve_batch batch;
  uint32_t batch_begin; /* in place: its first row in the slabs */
  msi_entry *members;   /* of the batch */
  uint32_t n_members, members_capacity;
  int64_t closed_ns;
  uint8_t *gathered_in[MPISERVE_MAX_TENSORS], *gathered_out[MPISERVE_MAX_TENSORS];
  mpiserve_counters counters;
} msi_broker;

/* First half of publishing: what memory each transport needs. Local. */
int msi_broker_open(msi_broker *broker, const msi_world *world,
                    const mpiserve_description *description, size_t bytes[MSI_TRANSPORTS]);

/* Second half: the windows are there. Local. */
int msi_broker_attach(msi_broker *broker, msi_window *window);
void msi_broker_close(msi_broker *broker);

/* As mpiserve_batch_next(), _reply() and _fail() say. */
int msi_broker_next(msi_broker *broker, double timeout, mpiserve_batch *batch);
int msi_broker_reply(msi_broker *broker, const void *const *outputs);
int msi_broker_fail(msi_broker *broker, int code, const char *text);

#endif
