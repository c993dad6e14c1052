/* state: what a simulation rank keeps of its services, of its requests, and of what waits to be
 * sent. */
#ifndef MSI_STATE_H
#define MSI_STATE_H

#include "base/metrics.h"
#include "base/profile.h"
#include "client/balance.h"
#include "client/endpoint.h"

/* What answers rows in place of a service: mpiserve_fallback_set(). */
typedef struct msi_fallback {
  int (*function)(void *data, int64_t rows, const void *const *inputs, void *const *outputs,
                  int code, const char *why); /* NULL: none */
  void *data;
} msi_fallback;

struct mpiserve_service {
  struct msi_client *client;
  const char *name;
  const msi_head *head;   /* of this rank's home replica at open; NULL: none can serve */
  msi_endpoint *endpoint; /* to its home now: another one if that has died; holds the buffers */
  int replicas;           /* that can serve */
  int planned;            /* of these, those that are no spares */
  msi_endpoint **choices; /* to each of these: near ones first, and all spares last */
  msi_balance balance;    /* of the choices */
  int assignment;         /* choice in whose census this rank counts */
  int attached;
  int checked;             /* the values of its results are */
  int generation;          /* of the model that has answered last; 0: none has */
  int unrecorded;          /* its home captures nothing of it */
  struct msi_local *local; /* NULL: no local model was needed yet */
  msi_client_part *part;   /* of the profile, or NULL */
  msi_fallback fallback;
};

/* What waits in the send queue of an endpoint, and then in a slot for its reply. */
typedef struct msi_message {
  enum {
    MESSAGE_REQUEST, /* the first member of an msi_call */
    MESSAGE_RECORD,  /* ... of an msi_call that nobody waits for: record_message.c */
    MESSAGE_CHANGE,  /* ... of an msi_change */
    MESSAGE_BUFFER   /* ... of an msi_buffer_request */
  } type;
  msi_endpoint *endpoint;
  int code;                       /* of the reply */
  int replied;                    /* the code is a head's */
  int abandoned;                  /* nobody waits for the reply */
  int exposed;                    /* its head, which has stopped, may still write its outputs */
  char text[MSI_EAGER_BYTES + 1]; /* of an error */
  struct msi_message *next;       /* of the send queue */
} msi_message;

/* The messages of an endpoint that have not been sent yet, in the order of submission. */
typedef struct msi_send_queue {
  msi_message *first, *last;
  size_t copied; /* bytes of the copies of records in it */
} msi_send_queue;

/* A request:
 *
 *         submit           send               reply          wait, test, cancel
 *   IDLE --------> QUEUED ------> IN_FLIGHT --------> DONE --------------------> IDLE
 *                  |  ^ ^------------'                 ^
 *        needs rows|  |   the service is               |
 *                  v  |granted   suspended there       |
 *                 LEASING -----------------------------'
 *                                  refused
 *
 * A request that is QUEUED is DONE if its deadline passes, and IDLE if it is cancelled. */
typedef struct msi_call {
  msi_message message;
  uint32_t index, generation; /* its id is generation << 32 | index + 1 */
  enum {
    CALL_IDLE,      /* free */
    CALL_QUEUED,    /* in the send queue of its endpoint */
    CALL_LEASING,   /* first there: it has asked for rows of the slabs */
    CALL_IN_FLIGHT, /* in a slot of its endpoint */
    CALL_DONE       /* it has ended; the caller does not know yet */
  } state;
  mpiserve_service *service;
  int piece;      /* of a request of the user's (msi_cut): its msi_kind; 0: it is none */
  msi_kind kind;  /* MSI_INFER, MSI_VISIT, MSI_PIECE or MSI_RECORD */
  msi_load *load; /* of the replica; NULL: there is no other */
  uint64_t sequence;
  int64_t submitted_ns;
  int arriving; /* some of its results may be in the caller's tensors */
  msi_payload payload;
  mpiserve_stats stats;
  msi_client_times times;   /* if profiled */
  uint8_t *own;             /* of a record that could not be sent at once: its tensors; or NULL */
  uint8_t *trusted;         /* of mpiserve_options; or NULL */
  float *uncertainty;       /* memory for the output that clients do not see, kept with the call */
  int64_t uncertainty_rows; /* for so many */
  int64_t step;             /* of a record: the time step of this rank that it belongs to */
  struct msi_call *next_idle;
} msi_call;

/* Does it wait for rows? Then it is in the send queue too. */
static inline int msi_message_is_leasing(const msi_message *message) {
  return message->type <= MESSAGE_RECORD && ((const msi_call *)message)->state == CALL_LEASING;
}

/* A request of more rows than a batch may have: request.c. */
typedef struct msi_cut msi_cut;

/* Requests that follow time steps: pace.c. */
typedef struct msi_pace msi_pace;

/* A step in which a head changes its model: mpiserve_change. It lives until its reply has come. */
typedef struct msi_change {
  msi_message message;
  int what; /* mpiserve_change */
  int sent;
  int done; /* the reply is there */
  char version[MPISERVE_NAME_SIZE];
  struct msi_change *next; /* of all that live */
} msi_change;

/* Of pairs that this rank records. */
typedef struct msi_recording {
  int code; /* of the first record that failed; the caller does not know yet */
  char text[2 * MPISERVE_TEXT_SIZE];
} msi_recording;

/* A request for rows that the user keeps as a buffer. */
typedef struct msi_buffer_request {
  msi_message message;
  int lease;
  int done;
} msi_buffer_request;

typedef struct msi_client {
  const msi_world *world;
  msi_window *window;
  msi_backoff backoff;
  int n_endpoints;
  msi_endpoint *endpoints;     /* to every head of the world */
  msi_send_queue *send_queues; /* of each endpoint */
  int n_services;
  mpiserve_service *services;
  msi_endpoint **choices;    /* of all services */
  msi_load *loads;           /* of these */
  uint32_t first_generation; /* of its requests */
  uint32_t n_calls;
  msi_call **calls; /* as many as were ever in use at the same time */
  msi_call *idle;   /* free list */
  uint32_t n_cuts;
  msi_cut **cuts;   /* as many as were ever in use at the same time */
  uint32_t n_paces; /* that were ever opened */
  msi_pace *paces;  /* that are open */
  msi_change *changes;
  msi_buffer_request buffer; /* one at a time: its caller waits */
  msi_recording recording;
  /* msi_recording_add(); fallbacks, which recording calls, find it here */
  void (*record)(mpiserve_service *service, int64_t rows, void *const *inputs,
                 void *const *outputs);
  unsigned tests; /* calls of test */
  int n_dead;     /* ranks of the world that were known to be dead at the last look */
  int unsettled;  /* endpoints that are stopped, and slots that are withdrawn */
  int64_t stopped_limit_ns, next_look_ns; /* for heads that have stopped */
  msi_metrics *metrics;                   /* its counters, and what it waits for: others may look */
  msi_profile *profile;
} msi_client;

/* The endpoint's head has died or stopped: the service has its home elsewhere, if another replica
 * serves. */
void msi_service_lose(mpiserve_service *service, const msi_endpoint *endpoint);

/* Takes a free request, cleared; NULL: no memory. Gives it back. */
msi_call *msi_calls_take(msi_client *client);
void msi_calls_give(msi_client *client, msi_call *call);
void msi_calls_free(msi_client *client);

/* Are its results to lie where its inputs do, in the window? Once a model has begun with it, nobody
 * has the inputs any more. */
int msi_calls_overwritten(const msi_call *call);

/* Do its outputs lie where inputs of it do, as the caller wishes? */
int msi_calls_replace_inputs(const msi_call *call);

/* The request of the user's handle; NULL: it has ended, or never was. The handle of a request. */
msi_call *msi_calls_find(const msi_client *client, const mpiserve_request *request);
mpiserve_request msi_calls_handle(const msi_call *call);

/* The send queue of an endpoint. Appends a message to that of its endpoint; removes it from
 * anywhere. */
msi_send_queue *msi_send_queue_of(msi_client *client, const msi_endpoint *endpoint);
void msi_send_queue_push(msi_client *client, msi_message *message);
void msi_send_queue_remove(msi_client *client, msi_message *message);

/* The head has granted the rows of a buffer, or has refused. */
void msi_buffer_replied(msi_buffer_request *request, const msi_reply_header *reply);

/* Copies the text of an error from its slot, before that is used again. */
void msi_message_keep_text(msi_message *message, int slot);

/* The code of a reply; an error becomes this thread's last one. */
int msi_message_result(const msi_message *message);

#endif
