/* broker: the inference side of one service. It takes requests, forms batches and refuses what it
 * cannot serve; head/reply.c answers. */
#ifndef MSI_BROKER_H
#define MSI_BROKER_H

#include "base/profile.h"
#include "base/ring.h"
#include "head/assembly.h"
#include "head/census.h"
#include "head/change_queue.h"
#include "head/life.h"
#include "head/progress.h"
#include "head/ticket_table.h"

/* What the description says, where others may read it: head/shown.c. */
typedef struct msi_label {
  char name[MPISERVE_NAME_SIZE];
  int64_t replica, spare, error, max_batch_rows, max_queue_rows;
} msi_label;

/* What is copied of the requests and their answers: head/capture.c. */
typedef struct msi_capture {
  msi_ring *ring; /* of the rank */
  mpiserve_capture wanted;
  int on;
  int64_t records; /* that clients have sent */
} msi_capture;

/* The round of a reproducible service: head/rounds.c. */
typedef struct msi_round {
  int64_t waits_ns;              /* since when it lacks clients; 0: it lacks none */
  uint32_t missing;              /* clients, at the last look */
  int64_t irregular;             /* rounds that lacked a client, or lost a request */
  char text[MPISERVE_TEXT_SIZE]; /* about the last one */
} msi_round;

typedef struct msi_broker {
  const msi_world *world;
  const mpiserve_description *description;
  msi_policy policy;
  msi_inbox inboxes[MSI_TRANSPORTS];
  msi_progress *progress;   /* of the rank */
  msi_queue queue;          /* requests that wait for a batch */
  msi_ticket_table tickets; /* requests that are held */
  msi_queue lease_queue;    /* requests for leases that wait for room */
  int64_t lease_looked_ns;  /* when that was seen last */
  int64_t lease_stalled_ns; /* for how long this rank has looked since rows were given */
  int turn_inbox;           /* where the next poll begins: at the lane that found no room */
  uint32_t turn_lane;       /* in the queue and has waited longest */
  uint32_t remote;          /* lanes of clients on other nodes, which cannot wake this rank */
  uint32_t remaining;       /* lanes whose client has not left, but gateways */
  uint32_t guests;          /* those of gateways */
  int shut;        /* requests are turned away: a rank has failed, or the service is suspended */
  int dead_rows;   /* rows of clients that died or left stay taken, until their requests end */
  int has_room;    /* the model has: otherwise requests stay in the queue */
  int failed_rank; /* of a simulation rank that ended with an error, or -1 */
  char failed_text[MPISERVE_TEXT_SIZE];
  int open;               /* a batch was closed and not answered */
  mpiserve_engine engine; /* that runs batches here; without run: the caller does */
  msi_assembly assembly;
  msi_census census;
  msi_change_queue changes;
  msi_life life;
  int64_t now_ns; /* of this poll, once somebody has asked for the time */
  int64_t closed_ns;
  mpiserve_counters counters;
  msi_profile *profile; /* NULL: the session is not profiled */
  msi_head_part *part;  /* of the profile */
  msi_late *late;       /* of the profile, by rank of the world */
  msi_head_times times; /* of the last batch, if profiled; taken and replied: of its last reply */
  msi_label label;
  mpiserve_placement placement; /* of a service with two models; side 0: it has one */
  msi_event event;              /* of the last batch, if traced */
  msi_capture capture;
  msi_round round;
} msi_broker;

/* First half of publishing: adds the memory that this service needs in each part to that of
 * those before it. service_index: its number among the services of the rank. Local. */
int msi_broker_open(msi_broker *broker, const msi_world *world,
                    const mpiserve_description *description, int service_index,
                    size_t bytes[MSI_PARTS]);

/* Second half: the memory is there. Local. */
void msi_broker_attach(msi_broker *broker, msi_window *window, msi_progress *progress);
void msi_broker_close(msi_broker *broker);

/* Takes requests, and closes a batch if it is time to: then broker->open is set, and it counts as
 * unanswered until msi_broker_end_batch(). */
int msi_broker_look(msi_broker *broker);

void msi_broker_end_batch(msi_broker *broker);

/* As mpiserve_state_set() says. */
int msi_broker_enter(msi_broker *broker, int state);

/* Suspends the service on this rank, or resumes it. While it is suspended, every request, also
 * those in the queue, is sent back so that its client asks another replica; but requests wait for
 * the answer to MPISERVE_START and MPISERVE_REPLACE. */
int msi_broker_suspend(msi_broker *broker, int suspended);

/* A rank has ended with an error: all requests of all clients do from now on. The first text, of
 * less than MPISERVE_TEXT_SIZE bytes, stays. */
int msi_broker_fail(msi_broker *broker, int rank, const void *text, size_t bytes);

/* Do rows of a request belong together from now on? Then pieces of requests are refused. */
int msi_broker_rows_set(msi_broker *broker, int together);

/* As mpiserve_change_reply() says. */
int msi_broker_change_reply(msi_broker *broker, int code, const char *text);

/* Takes the requests that clients have written, once around all lanes. */
int msi_broker_poll(msi_broker *broker);

/* One reading of the clock serves a whole sweep over the lanes. */
static inline int64_t msi_broker_now(msi_broker *broker) {
  if (!broker->now_ns) broker->now_ns = msi_now();
  return broker->now_ns;
}

/* Answers a request with an error. */
static inline int msi_broker_refuse(msi_broker *broker, const msi_entry *entry, int code,
                                    const char *text) {
  broker->counters.requests++;
  broker->counters.errors++;
  if (MSI_PROFILED && broker->part)
    broker->part->errors[-code < MSI_CODES ? -code : MSI_CODES - 1]++;
  return msi_inbox_reply(&broker->inboxes[entry->inbox], entry->lane, entry->sequence, code, text);
}

/* Ends a held request's ticket, because it is being answered. */
void msi_broker_end_ticket(msi_broker *broker, msi_ticket *held);

#endif
