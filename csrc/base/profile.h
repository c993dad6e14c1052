/* profile: where the time of requests and of steps goes, on this rank. All of it lies in a file
 * that is mapped: what was measured is there however the process ends, and others may read it at
 * any time. Its layout is that of mpiserve/observe/parts.py. No MPI calls. */
#ifndef MSI_PROFILE_H
#define MSI_PROFILE_H

#include "base/profile_files.h"
#include "base/segment.h"
#include "base/trace.h"
#include "base/wait.h"
#include "mpiserve.h"

enum {
  MSI_PROFILE_VERSION = 2,
  MSI_BUCKETS = 336, /* 8 per power of two: a time is known to an eighth */
  MSI_CODES = 24,    /* by -code; the last one counts all others */
  MSI_CLOSINGS = 5,  /* msi_close_reason */
  MSI_STEPS = 1024   /* that are kept: the last ones */
};

/* Is a session of this process profiled? One load and one branch, where nothing else is spent. */
extern int msi_profile_on;
#define MSI_PROFILED __builtin_expect(msi_profile_on, 0)

/* ---- the file -------------------------------------------------------------------------- */

typedef struct msi_timing {
  int64_t count, sum_ns, most_ns;
  uint32_t buckets[MSI_BUCKETS];
} msi_timing;

/* A time step: its begin, its length, how long the rank waited for models, and for what. */
typedef struct msi_step {
  int64_t begin_ns, length_ns, requests, waited_ns;
  int64_t stages_ns[MPISERVE_STAGES];
} msi_step;

/* What a simulation rank knows of a service. */
typedef struct msi_client_part {
  char name[MPISERVE_NAME_SIZE];
  int64_t requests, rows, fallbacks, untrusted_rows;
  int64_t answered, batch_rows, batch_requests; /* sums over those that a head has answered */
  int64_t errors[MSI_CODES];
  int64_t waited_ns, waited_stages_ns[MPISERVE_STAGES];
  int64_t least_flight_ns; /* of a request and its reply between nodes, together */
  msi_timing total, stages[MPISERVE_STAGES];
} msi_client_part;

/* What a head knows of a service. */
typedef struct msi_head_part {
  char name[MPISERVE_NAME_SIZE];
  int64_t replica, max_batch_rows, max_delay_ns, max_queue_rows;
  int64_t batches, requests, rows, in_place;
  int64_t lookups, hits; /* rows: of mpiserve_counters.cache_lookups and cache_hits */
  int64_t closed[MSI_CLOSINGS];
  int64_t errors[MSI_CODES];
  msi_timing engine;
} msi_head_part;

/* How often the batches of a head waited for a rank of the world that came last, and how long. */
typedef struct msi_late {
  int64_t batches, waited_ns;
} msi_late;

/* The beginning of a file. Then follow clients, heads, for each head a msi_late for every rank of
 * the world, and, of a simulation rank, steps. */
typedef struct msi_part {
  char magic[8]; /* "mpiserve" */
  int32_t version, bytes;
  int64_t run; /* the same on all ranks of the session, and another one for each session */
  int32_t rank, size, role, node, pid, n_clients, n_heads, n_steps;
  char host[MPISERVE_NAME_SIZE];
  int64_t opened_at_ns;                  /* since 1970 */
  int64_t opened_ns, seen_ns, closed_ns; /* by the clock of the node; seen: at the last record */
  int64_t steps;                         /* that have ended */
  msi_step all, current;                 /* of the steps that have ended; the one that has not */
  msi_timing step_length, step_waited;
} msi_part;

/* ---- a request ------------------------------------------------------------------------- */

/* At its head, by the clock of that node. */
typedef struct msi_head_times {
  int64_t taken_ns, free_ns; /* free: the head had ended what it did before */
  int64_t closed_ns, gathered_ns, computed_ns, replied_ns;
} msi_head_times;

/* At its client. */
typedef struct msi_client_times {
  int64_t submitted_ns, begun_ns, sent_ns, seen_ns, ended_ns;
  int64_t entered_ns, left_ns; /* the caller waits for it, and has given up for now */
  int64_t returned_ns;
  int in_region;   /* other profilers know that the caller waits */
  int is_late;     /* it could not be sent at once */
  int is_answered; /* head holds its times */
  int same_clock;  /* as the head */
  msi_head_times head;
} msi_client_times;

/* ---- of a rank ------------------------------------------------------------------------- */

typedef struct msi_profile {
  msi_part *part; /* NULL: nothing is measured */
  msi_client_part *clients;
  msi_head_part *heads;
  msi_late *late; /* of all heads */
  msi_step *steps;
  msi_client_part *pending; /* the service of a request that has ended, and is not added yet */
  msi_client_times pending_times;
  int64_t free_ns;     /* inference ranks: when the last batch, of any service, had ended */
  int fd;              /* of the file, if there is a part */
  msi_segment segment; /* which is the file, if nobody wants to keep it */
  msi_trace trace;     /* if it is traced too */
} msi_profile;

/* What the environment of a rank asks for; -1: something that there is not. events: of a trace; 0:
 * it says nothing of them. */
enum { MSI_PROFILE_OFF, MSI_PROFILE_SUMMARY, MSI_PROFILE_TRACE };
typedef struct msi_profile_wish {
  int32_t level, events;
} msi_profile_wish;
msi_profile_wish msi_profile_wished(void);

/* Makes the file of a rank; part says what its first members are. MPISERVE_ECONFIG: it cannot be
 * made, and why. */
int msi_profile_open(msi_profile *profile, const msi_part *part);

/* The same without a name: it is there as long as this process, for MPISERVE_METRICS alone. */
int msi_profile_open_shown(msi_profile *profile, const msi_part *part);

/* This rank begins to leave: the last step ends. Gives the memory back; the file stays. Both allow
 * a profile that is not open. */
void msi_profile_end(msi_profile *profile);
void msi_profile_close(msi_profile *profile);

void msi_timing_add(msi_timing *timing, int64_t ns);

/* The step that goes on ends, and one begins. */
void msi_profile_step(msi_profile *profile, int64_t now_ns);

/* Adds a request that has ended to a service, and to the step: later, while the rank waits for the
 * next one, since it takes longer than the request pays for its profile. */
void msi_profile_add(msi_profile *profile, msi_client_part *client, const msi_client_times *times);

/* Does it now; before what was measured is read. */
void msi_profile_settle_pending(msi_profile *profile);
static inline void msi_profile_settle(msi_profile *profile) {
  if (profile->pending) msi_profile_settle_pending(profile);
}

#endif
