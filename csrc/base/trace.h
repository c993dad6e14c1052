/* trace: the last events of this rank, in a ring that is a mapped file: what was written is there
 * however the process ends. One thread at a time writes; anybody may read at any time. Its layout
 * is that of mpiserve/observe/trace.py. No MPI calls. */
#ifndef MSI_TRACE_H
#define MSI_TRACE_H

#include <stdatomic.h>
#include <stdint.h>

#include "mpiserve.h"

enum {
  MSI_TRACE_VERSION = 1,
  MSI_TRACE_EVENTS = 32768, /* of a rank, if nobody says otherwise */
  MSI_TRACE_LEAST = 16,
  MSI_TRACE_MOST = 1 << 24,
  MSI_EVENT_TIMES = 13,
  MSI_EVENT_TEXT = 88
};

typedef enum msi_event_kind {
  MSI_EVENT_REQUEST = 1, /* of a client */
  MSI_EVENT_BATCH = 2,   /* of a head */
  MSI_EVENT_STEP = 3,    /* a time step of a client */
  MSI_EVENT_STATE = 4,   /* a replica enters a state */
  MSI_EVENT_CHANGE = 5,  /* a head has changed its model, or has not */
  MSI_EVENT_MOVED = 6    /* a client sends a request to another replica */
} msi_event_kind;

enum {
  MSI_EVENT_LATE = 1,
  MSI_EVENT_ANSWERED = 2,
  MSI_EVENT_SAME_CLOCK = 4,
  MSI_EVENT_SOURCE = 16
};

/* Times are those of the clock of the rank's node; what each is depends on the kind. */
typedef struct msi_event {
  uint8_t kind, flags; /* request: the bits above, the source from the fifth on; batch: why it was
                          closed; state: which; change: what */
  int16_t code;        /* of an error */
  int32_t service;     /* index among the names of this file; -1: none */
  int32_t peer; /* request: its head; batch: the rank that came last, or -1; change: who asked */
  uint32_t rows, requests, batch_rows;
  union {
    int64_t times[MSI_EVENT_TIMES];
    struct {
      int64_t begin_ns, end_ns;
      char text[MSI_EVENT_TEXT]; /* change: the version */
    };
  };
} msi_event;

_Static_assert(sizeof(msi_event) == 128, "two cache lines, and the same for all compilers");

/* What to add to the clock of this rank's node to get that of rank 0. */
typedef struct msi_clock {
  int64_t at_ns, offset_ns; /* at: by this node's clock; 0: not measured */
  int64_t round_trip_ns;    /* the offset is known to half of it */
} msi_clock;

/* The beginning of the file. Then follow the names of the services, and the events. */
typedef struct msi_trace_file {
  char magic[8]; /* "mpitrace" */
  int32_t version, n_services;
  int64_t run; /* as in msi_part */
  int32_t rank, size, role, node, pid, unused;
  int64_t n_events; /* that there is room for: a power of two */
  char host[MPISERVE_NAME_SIZE];
  int64_t opened_at_ns, opened_ns; /* since 1970; by the clock of the node */
  msi_clock clocks[2];             /* at open, and at close */
  _Atomic int64_t written;         /* events, since the open */
} msi_trace_file;

typedef char msi_trace_name[MPISERVE_NAME_SIZE];

typedef struct msi_trace {
  msi_trace_file *file; /* NULL: nothing is traced */
  msi_trace_name *names;
  msi_event *events;
  uint64_t mask;
} msi_trace;

/* Where the next event is to be written: over the oldest one, if the ring is full. */
static inline msi_event *msi_trace_next(const msi_trace *trace) {
  int64_t written = atomic_load_explicit(&trace->file->written, memory_order_relaxed);
  return &trace->events[(uint64_t)written & trace->mask];
}

/* It is written. Release: whoever reads the number finds the event whole. The one that is being
 * overwritten is the oldest of the ring, which readers of a full ring leave out. */
static inline void msi_trace_put(const msi_trace *trace) {
  int64_t written = atomic_load_explicit(&trace->file->written, memory_order_relaxed);
  atomic_store_explicit(&trace->file->written, written + 1, memory_order_release);
}

struct msi_part;

/* Makes the file of a rank, with room for so many events or more; part says who it is. Services are
 * named afterwards. MPISERVE_ECONFIG: it cannot be made, and why. */
int msi_trace_open(msi_trace *trace, const struct msi_part *part, int64_t n_events);

/* Gives the memory back; the file stays. Allows a trace that is not open. */
void msi_trace_close(msi_trace *trace);

#endif
