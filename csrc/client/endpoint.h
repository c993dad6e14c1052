/* endpoint: a simulation rank's end of one lane: how requests get to a head and replies back.
 * It knows slots, leases and the transport, and nothing of calls and waiting. */
#ifndef MSI_ENDPOINT_H
#define MSI_ENDPOINT_H

#include "mpi/transport.h"

/* Rows of a head's slabs that are this client's until it gives them back. The first
 * MSI_SLOTS leases of a lane serve requests in turn, the others are buffers. */
typedef struct msi_lease {
  uint32_t begin, rows;
  int users;   /* requests that use it, or ask for it */
  int once;    /* it must be given back after the request, or requests, that use it now */
  int stale;   /* it must be given back now */
  int renewed; /* it was replaced before: sizes vary, ask for some more */
} msi_lease;

/* Where rows lie: in a lease, from one of its rows on; in the slot if lease < 0. */
typedef struct msi_location {
  int lease;
  uint32_t row;
  int in_place; /* the caller's tensor is that memory: nothing to copy */
} msi_location;

/* The free dimensions of a request, and its rows' bytes. */
typedef struct msi_shapes {
  uint32_t input_dims[MPISERVE_MAX_FREE];
  msi_given wanted;                                       /* of the outputs */
  int64_t *result_shapes;                                 /* of mpiserve_options; or NULL */
  int64_t found[MPISERVE_MAX_TENSORS][MPISERVE_MAX_DIMS]; /* of the results, when they are there */
  msi_side inputs, outputs;
} msi_shapes;

/* The rows of a request, and how it is to be served. */
typedef struct msi_payload {
  int64_t rows;
  int64_t deadline_ns; /* 0: none */
  int8_t priority;
  msi_location input, output;
  void *inputs[MPISERVE_MAX_TENSORS], *outputs[MPISERVE_MAX_TENSORS];
  msi_shapes *shapes; /* of services with free dimensions */
} msi_payload;

/* What a slot whose request was withdrawn keeps until the head replies: leases, -1: none. */
typedef struct msi_withdrawn {
  int waits; /* for the reply */
  int input, output;
  int exposed; /* the buffer to which the head may write */
} msi_withdrawn;

typedef struct msi_endpoint {
  msi_path path;
  msi_layout layout;
  uint64_t sent;      /* sequence of the last request */
  int in_flight;      /* slots taken */
  int64_t written_ns; /* if profiled: when the rows of the last one were in the slabs; 0: at once */
  int lost;           /* the head has died: nothing is sent there any more */
  int stopped;        /* the head shows no sign of life: no request is sent there */
  int64_t silent_ns;  /* since when there was none; 0: there was one */
  uint64_t waits_for; /* the oldest request without a reply, at the last look */
  msi_kind noted;     /* the last note that it got: MSI_FAIL or MSI_LEAVE */
  int replaced;       /* its service has failed there, and a spare was asked */
  int fetching;       /* 1 + the slot whose results are being fetched; 0: none */
  int taken[MSI_SLOTS];    /* is the slot? */
  void *owners[MSI_SLOTS]; /* of the slots taken; NULL: nobody waits for the reply */
  msi_withdrawn withdrawn[MSI_SLOTS];
  msi_lease leases[MSI_LEASES];
  int stale;              /* leases that are */
  void *own[MSI_BUFFERS]; /* another node: memory of the buffers */
  msi_given *given;       /* of both sides: the free dimensions of the last call; or NULL */
} msi_endpoint;

int msi_endpoint_open(msi_endpoint *endpoint, msi_window *window, const msi_head *head);
void msi_endpoint_close(msi_endpoint *endpoint);

/* Reads when the replica entered each state: MPISERVE_STATES times. MPISERVE_ETIMEOUT: the head, on
 * another node, has not answered. */
int msi_endpoint_states(msi_endpoint *endpoint, int64_t *entered_ns);

/* Does the head live and have its model, as far as can be seen? */
int msi_endpoint_serves(msi_endpoint *endpoint);

/* Is the slot of the next request free? */
int msi_endpoint_can_send(const msi_endpoint *endpoint);

/* A lease for so many rows that nobody uses, or one that may be replaced: its
 * index, or -1. */
int msi_endpoint_find_lease(const msi_endpoint *endpoint, int64_t rows);
int msi_endpoint_spare_lease(const msi_endpoint *endpoint);

/* Sends a request of any kind that moves no rows. The next slot must be free. */
int msi_endpoint_send(msi_endpoint *endpoint, msi_kind kind, int64_t rows, int lease,
                      const char *text, void *owner);

/* Send rows to be computed, as MSI_INFER or MSI_VISIT. *sequence names the request for
 * msi_endpoint_cancel(). MSI_NOT_YET: the head takes nothing now, and nothing was sent. */
int msi_endpoint_infer(msi_endpoint *endpoint, msi_kind kind, const msi_payload *payload,
                       void *owner, uint64_t *sequence);

/* Tells the head that nobody waits for this request: it drops the request if the model has not
 * begun with it. */
int msi_endpoint_cancel(msi_endpoint *endpoint, uint64_t sequence);

/* Marks the last request for a head that has no slot free, and finds the mark when it goes on:
 * MSI_HAS_LEFT or MSI_HAS_FAILED. */
int msi_endpoint_mark(msi_endpoint *endpoint, uint32_t mark);

/* The oldest slot with a complete reply: its number, or -1. */
int msi_endpoint_reply(msi_endpoint *endpoint);

/* Where to sleep until the reply comes; 0: the head cannot wake this client. */
int msi_endpoint_wait_address(msi_endpoint *endpoint, uint64_t sequence, msi_wait_address *address);

/* The outputs of a reply, with rows of the bytes of side; the slot stays taken. MSI_NOT_YET: they
 * have not all arrived. */
int msi_endpoint_outputs(msi_endpoint *endpoint, int slot, const msi_payload *payload,
                         const msi_side *side);

/* Are rows copied, to or from where a request has them, about as fast as a look at the clock
 * takes? */
int msi_endpoint_is_quick(const msi_endpoint *endpoint, const msi_location *at,
                          const msi_side *side, int64_t rows);

/* No results that are being fetched are written any more. */
void msi_endpoint_forget(msi_endpoint *endpoint);

/* Free the slot. */
void msi_endpoint_release(msi_endpoint *endpoint, int slot);

/* When the head, which waits, last looked for what it waits for, by the clock of the node; 0: it
 * does not wait, or nobody can see. */
int64_t msi_endpoint_waits(const msi_endpoint *endpoint);

/* MPISERVE_EPEER: the head has died, or has stopped. */
int msi_endpoint_lost(const msi_endpoint *endpoint);

/* Appends what is known of a head that does not reply: "inference rank 3 (pid 77 on host n1):
 * alive; it has been running a batch for 12.0 s". */
void msi_endpoint_why(const msi_endpoint *endpoint, char *text, size_t bytes);

/* Brings the replies that have come into the lane. */
static inline int msi_endpoint_progress(msi_endpoint *endpoint) {
  msi_path *path = &endpoint->path;
  return path->transport->progress ? path->transport->progress(path) : MPISERVE_OK;
}

/* Is the lease a buffer that the user has not given back? */
int msi_endpoint_holds(const msi_endpoint *endpoint, int lease);

/* Do tensors of one side lie in a buffer, all from one row of it on? Fills location. */
int msi_endpoint_find_location(const msi_endpoint *endpoint, int outputs, int64_t rows,
                               void *const *data, msi_location *location);

/* Does a tensor begin in the rows of a buffer, inputs or outputs? */
int msi_endpoint_is_in_buffer(const msi_endpoint *endpoint, int lease, const void *tensor);

/* The addresses of a buffer whose lease was granted (shared), or which is to be
 * allocated here (rma). */
int msi_endpoint_map_buffer(msi_endpoint *endpoint, int lease, mpiserve_buffer *buffer);
void msi_endpoint_free_buffer(msi_endpoint *endpoint, int lease);

#endif
