/* serving: an inference rank at work for all its services, each with a broker of its own. */
#ifndef MSI_SERVING_H
#define MSI_SERVING_H

#include "head/broker.h"

/* Of the clients, since when. */
typedef struct msi_silence {
  int64_t limit_ns; /* after which it is long: MPISERVE_WAIT_NOTICE */
  int64_t since_ns;
  int64_t activity; /* requests and batches until then */
  uint32_t remaining;
} msi_silence;

typedef struct msi_serving {
  msi_backoff backoff;
  int n;
  msi_segment memory;  /* of the brokers: others may look at their numbers */
  msi_broker *brokers; /* by the index of their services */
  msi_broker *last;
  msi_broker *turn;    /* to look at next */
  msi_broker *current; /* of the batch that was handed out last; never NULL */
  msi_broker *asked;   /* the one of the last MPISERVE_ECHANGE */
  int64_t calls;       /* of msi_serving_next() */
  int64_t answered;    /* requests that caches have answered, without a batch */
  msi_progress progress;
  msi_ring ring; /* of captures */
  msi_silence silence;
  msi_section_header *header; /* where clients see what this rank does; NULL: none is near */
  int n_dead;                 /* ranks of the world that were known to be dead at the last look */
  int64_t parted_ns;      /* when the last simulation rank had left, with gateways there; or 0 */
  int64_t next_burial_ns; /* when a rank that always has a batch looks for them again */
  int64_t next_marks_ns;  /* when it looks again for those that left marks */
} msi_serving;

/* First half of publishing: what memory is needed, by its parts. Local. descriptions must
 * outlive it. */
int msi_serving_open(msi_serving *serving, const msi_world *world, int n,
                     const mpiserve_description *descriptions, size_t bytes[MSI_PARTS]);

/* Second half: the memory is there. Local. */
int msi_serving_attach(msi_serving *serving, msi_window *window);
void msi_serving_close(msi_serving *serving);

/* As mpiserve_batch_next() says. */
int msi_serving_next(msi_serving *serving, double timeout, mpiserve_batch *batch);

/* As mpiserve_poll() says. */
int msi_serving_poll(msi_serving *serving);

/* As mpiserve_suspend(), mpiserve_engine_set(), mpiserve_rows_set(), mpiserve_room_set() and
 * mpiserve_queue_get() say. */
int msi_serving_suspend(msi_serving *serving, int service, int suspended);
int msi_serving_engine_set(msi_serving *serving, int service, const mpiserve_engine *engine);
int msi_serving_rows_set(msi_serving *serving, int service, int rows);
int msi_serving_room_set(msi_serving *serving, int service, int room);
int msi_serving_state_set(msi_serving *serving, int service, int state);
int msi_serving_queue_get(const msi_serving *serving, int service, int64_t *rows);

/* As mpiserve_batch_shapes_get() and mpiserve_result_shapes_set() say. */
int msi_serving_shapes_get(const msi_serving *serving, int64_t *shapes);
int msi_serving_shapes_set(msi_serving *serving, int service, int64_t rows, const int64_t *shapes);

/* As mpiserve_change_get() and mpiserve_change_reply() say. */
int msi_serving_change_get(const msi_serving *serving, mpiserve_change_request *change);
int msi_serving_change_reply(msi_serving *serving, int service, int code, const char *text);

/* As mpiserve_wanted_get() says. */
int msi_serving_wanted(msi_serving *serving);

/* The sums over the services. */
void msi_serving_count(const msi_serving *serving, mpiserve_counters *counters);

/* The broker that knows most of the clients: of one that failed, if any did. */
const msi_broker *msi_serving_witness(const msi_serving *serving);

#endif
