/* calls: what a simulation rank keeps of its services and of the requests to them. */
#ifndef MSI_CALLS_H
#define MSI_CALLS_H

#include "client/balance.h"
#include "client/endpoint.h"

typedef struct msi_call msi_call;

struct mpiserve_service {
  struct msi_client *client;
  const char *name;
  const msi_head *head; /* of the replica that is this rank's home; NULL: none can serve */
  msi_link *link;       /* to that head; buffers are there */
  int replicas;         /* that can serve */
  msi_link **choices;   /* to each of these, near ones first */
  msi_balance balance;  /* of the choices */
  int seat;             /* choice in whose census this rank counts */
  int attached;
};

struct msi_call {
  uint32_t index, generation; /* its id is generation << 32 | index + 1 */
  enum {
    CALL_IDLE,
    CALL_QUEUED,  /* in the line of its link */
    CALL_ORDER,   /* no request, in the line too: asks for another model */
    CALL_LEASING, /* first of its line; has asked for rows of the slabs */
    CALL_KEEPING, /* no request: a buffer is being asked for */
    CALL_CONTROL, /* an order that was sent */
    CALL_FLYING,
    CALL_DONE
  } state;
  int code;
  int abandoned;             /* cancelled: nobody wants the end */
  int what;                  /* mpiserve_change, of an order; its text is the version */
  mpiserve_service *service; /* of a request; NULL: it is none */
  msi_link *link;
  msi_kind kind;  /* MSI_INFER or MSI_VISIT */
  msi_load *load; /* of the replica; NULL: there is no other */
  uint64_t sequence;
  int64_t submitted_ns;
  msi_cargo cargo;
  mpiserve_stats stats;
  char text[MSI_EAGER_BYTES + 1];
  msi_call *next; /* of the free list, or of the line */
};

/* The calls of a link that have not been sent yet, in the order of submission. */
typedef struct msi_line {
  msi_call *first, *last;
} msi_line;

typedef struct msi_client {
  const msi_world *world;
  msi_window *window;
  msi_patience patience;
  int n_links;
  msi_link *links; /* to every head of the world */
  msi_line *lines; /* of each link */
  int n_services;
  mpiserve_service *services;
  msi_link **choices; /* of all services */
  msi_load *loads;    /* of these */
  uint32_t n_calls;
  msi_call **calls; /* all that were ever needed at the same time */
  msi_call *idle;   /* free list */
  unsigned tests;   /* looks without waiting */
  mpiserve_counters counters;
} msi_client;

#endif
