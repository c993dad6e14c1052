/* client: the simulation side. Requests from submit to end, over the links to
 * the heads. */
#ifndef MSI_CLIENT_H
#define MSI_CLIENT_H

#include "link.h"

typedef struct msi_call msi_call;

struct mpiserve_service {
  struct msi_client *client;
  const char *name;
  const msi_head *head; /* of the replica that this rank asks; NULL: none can serve */
  msi_link *link;       /* to that head */
  int replicas;         /* that can serve */
  int attached;
};

typedef struct msi_client {
  const msi_world *world;
  msi_window *window;
  int n_links;
  msi_link *links; /* to every head of the world */
  int n_services;
  mpiserve_service *services;
  uint32_t n_calls;
  msi_call **calls; /* all that were ever needed at the same time */
  msi_call *idle;   /* free list */
  mpiserve_counters counters;
} msi_client;

int msi_client_open(msi_client *client, const msi_world *world, msi_window *window);

/* Ends every request, takes leave from every head, frees all. */
int msi_client_close(msi_client *client);

int msi_client_find(msi_client *client, const char *name, mpiserve_service **service);

/* Says that this rank will ask: from now on it counts in the census. */
int msi_client_attach(mpiserve_service *service);

int msi_client_submit(mpiserve_service *service, int64_t rows, void *const *inputs,
                      void *const *outputs, mpiserve_request *request);

/* Ends with what the request ended with, or with MPISERVE_ETIMEOUT; a timeout
 * of 0 tests. */
int msi_client_wait(msi_client *client, mpiserve_request *request, double timeout,
                    mpiserve_stats *stats);
int msi_client_cancel(msi_client *client, mpiserve_request *request);
int msi_client_fail(msi_client *client, const char *text);

#endif
