/* made_up: a head and its clients in one process, without MPI: a world of one head and so
 * many simulation ranks on one node. */
#ifndef MSI_MADE_UP_H
#define MSI_MADE_UP_H

#include <stdlib.h>

#include "base/error.h"
#include "client/endpoint.h"
#include "head/serving.h"

typedef struct msi_made_up {
  msi_world world;
  msi_window window;
  msi_serving serving;
} msi_made_up;

/* The head is the last rank; every rank is on the node of rank 0. */
static inline int made_up_world(msi_world *world, int clients) {
  *world = (msi_world){.size = clients + 1,
                       .rank = clients,
                       .role = MPISERVE_INFERENCE,
                       .n_simulation = clients,
                       .n_clients = clients,
                       .backoff = msi_backoff_for(2, 2)};
  world->roles = calloc((size_t)world->size, sizeof *world->roles);
  world->nodes = calloc((size_t)world->size, sizeof *world->nodes);
  if (!world->roles || !world->nodes) return msi_error(MPISERVE_ENOMEM, "no memory for a world");
  for (int r = 0; r < clients; r++) world->roles[r] = MPISERVE_SIMULATION;
  world->roles[clients] = MPISERVE_INFERENCE;
  return MPISERVE_OK;
}

static inline int made_up_open(msi_made_up *made, int clients, int n,
                               const mpiserve_description *descriptions) {
  size_t bytes[MSI_PARTS];
  int code = made_up_world(&made->world, clients);
  if (!code) code = msi_serving_open(&made->serving, &made->world, n, descriptions, bytes);
  if (code) return code;
  made->window = (msi_window){.world = &made->world};
  code = msi_window_reserve(&made->window, bytes);
  return code ? code : msi_serving_attach(&made->serving, &made->window);
}

static inline void made_up_close(msi_made_up *made) {
  msi_serving_close(&made->serving);
  msi_window_unmap(&made->window);
  free(made->world.roles);
  free(made->world.nodes);
}

/* The end of a lane of one service that a client on this node has. */
static inline msi_endpoint made_up_endpoint(msi_made_up *made, int service_index, uint32_t lane) {
  const msi_inbox *inbox = &made->serving.brokers[service_index].inboxes[MPISERVE_SHARED];
  return (msi_endpoint){.path = {.transport = &msi_shared,
                                 .window = &made->window,
                                 .head = made->world.rank,
                                 .service_index = service_index,
                                 .doorbell_at = inbox->layout.doorbells_at + lane,
                                 .slots = msi_inbox_slot(inbox, lane, 1),
                                 .memory = inbox->memory},
                        .layout = inbox->layout};
}

#endif
