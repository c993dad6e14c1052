/* mpiserve.h: the whole contract of libmpiserve, and the only installed header.
 *
 * One MPI world is partitioned into simulation ranks, which send requests, and inference ranks,
 * which answer them. An inference rank serves a replica of a service, which is a named model behind
 * a signature and a batching policy, or replicas of several services.
 *
 * Conventions
 *   - Every function that can fail returns int: MPISERVE_OK (0), or a negative MPISERVE_E... code.
 *     mpiserve_strerror() gives the fixed text of a code, mpiserve_last_error() the details of this
 *     thread's last failure.
 *   - The library never prints, exits or aborts, but for one case: when the launcher of the job has
 *     ended (killed, mostly), where MPI_Finalize would wait for ever, a thread prints a line and
 *     ends the process by SIGTERM, or 3 s later by _exit(1). MPISERVE_END_WITH_LAUNCHER=0 in the
 *     environment of open switches that off.
 *   - MPI errors on its own communicators and windows come back as MPISERVE_EMPI.
 *   - "Collective" means: over the world given to mpiserve_open(). "Local" means: the call does
 *     not communicate.
 *   - Handles are checked: NULL is MPISERVE_EARG; a session that is not open, or a service of one,
 *     is MPISERVE_ESTATE, and so is a request that has ended. Pointers to data cannot be checked.
 *   - One thread at a time uses a session and all that belongs to it. Threads may take turns, which
 *     needs MPI_THREAD_SERIALIZED; a call while another thread is in one returns MPISERVE_ESTATE
 *     and does nothing. Otherwise simulation ranks need MPI_THREAD_SINGLE and inference ranks
 *     MPI_THREAD_SERIALIZED.
 *   - A session belongs to the process that opened it. In a forked child every call returns
 *     MPISERVE_ESTATE, mpiserve_open() too, and the child's end changes nothing.
 *   - Times are in seconds (double) in arguments and nanoseconds (_ns) in structs. A time-out below
 *     0, such as MPISERVE_FOREVER, has no end; one that is not a number is MPISERVE_EARG.
 *   - Tensors are dense and C-contiguous. The first dimension is the row (batch) dimension; in a
 *     signature it is -1. Tensors of a service with MPISERVE_NO_ROWS or MPISERVE_RAGGED have no row
 *     dimension: where something counts rows, each request to it is one row.
 *   - Other dimensions that are -1 in a signature are free: each request has its own, up to the
 *     max_shape of the signature. Requests share a batch if all free dimensions of their inputs are
 *     equal, or the service is MPISERVE_RAGGED; the others wait in the same queue, and the oldest
 *     request is in the next batch.
 */
#ifndef MPISERVE_H
#define MPISERVE_H

#ifndef MPISERVE_NO_MPI /* define it where there is no MPI: for a library that holds an engine */
#include <mpi.h>
#if defined(MPI_ABI_VERSION) && !defined(MPICH_VERSION) && !defined(OPEN_MPI)
#define MPISERVE_MPI_ABI /* the binary interface of MPI 5 itself, whose mpi.h lacks this type */
typedef int MPI_Fint;
#endif
#endif
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MPISERVE_VERSION_MAJOR 0
#define MPISERVE_VERSION_MINOR 5
#define MPISERVE_VERSION_PATCH 0

/* Rises with every change after which a program must be compiled anew. It is the number in the
 * soname, libmpiserve.so.3, so the loader refuses a wrong pair. */
#define MPISERVE_ABI_VERSION 3

/* Rises with every change after which a library of engines must be compiled anew. */
#define MPISERVE_ENGINE_VERSION 1
#define MPISERVE_ENGINE_ENTRY "mpiserve_engine_make" /* what it exports: mpiserve_engine_entry */

#define MPISERVE_FOREVER (-1.0)    /* as a time-out: wait without end */
#define MPISERVE_MAX_DIMS 8        /* dimensions of a tensor, rows included */
#define MPISERVE_MAX_TENSORS 16    /* inputs, and outputs, of one service */
#define MPISERVE_MAX_FREE 32       /* free dimensions of all its inputs, and of all its outputs */
#define MPISERVE_NAME_SIZE 64      /* bytes of a name, with its final zero */
#define MPISERVE_TEXT_SIZE 512     /* bytes of a longer text, with its final zero */
#define MPISERVE_MAX_SESSIONS 64   /* sessions that one process has open at a time */
#define MPISERVE_STATES 8          /* in mpiserve_state */
#define MPISERVE_STAGES 11         /* in mpiserve_stage */
#define MPISERVE_PAIR_BYTES 131072 /* of the file of mpiserve_open_pair() */
#define MPISERVE_OUTPUT_RANGES 3   /* most that mpiserve_segment_outputs() finds */
#define MPISERVE_LOCAL_SIZE \
  2048 /* bytes of a command, with its final zero: mpiserve_description \
        */

/* Results. mpiserve_strerror() gives the text of a code. */
typedef enum mpiserve_code {
  MPISERVE_OK = 0,
  MPISERVE_EARG = -1,        /* an argument is not valid: null, out of range, wrong role */
  MPISERVE_ESTATE = -2,      /* the call does not fit the state: after close, before publish */
  MPISERVE_EMPI = -3,        /* MPI reported an error */
  MPISERVE_ENOMEM = -4,      /* memory, or a window, could not be allocated */
  MPISERVE_ETHREAD = -5,     /* MPI thread levels of the ranks do not fit together */
  MPISERVE_EVERSION = -6,    /* ranks run different versions, or another MPI than built for */
  MPISERVE_ECONFIG = -7,     /* the configuration, or the partition that it asks for, is wrong */
  MPISERVE_ENOTFOUND = -8,   /* no service of this name in the world */
  MPISERVE_ENAME = -9,       /* a tensor's name is not in the signature */
  MPISERVE_EDTYPE = -10,     /* a tensor's dtype is not that of the signature */
  MPISERVE_ESHAPE = -11,     /* a tensor's shape, or the number of tensors, is wrong */
  MPISERVE_EROWS = -12,      /* rows differ between tensors, are none, or exceed the limit */
  MPISERVE_EMODEL = -13,     /* the model failed: while loading, or on this batch */
  MPISERVE_ETIMEOUT = -14,   /* the time-out passed */
  MPISERVE_ECANCELLED = -15, /* the request was cancelled */
  MPISERVE_EPEER = -16,      /* another rank of the session ended with an error, or died */
  MPISERVE_ECLOSED = -17,    /* the session closed before the request was answered */
  MPISERVE_EFULL = -18,      /* the service's queue is full: submit again later */
  MPISERVE_EDEADLINE = -19,  /* the request's deadline passed; unlike ETIMEOUT, it has ended */
  MPISERVE_ECHANGE = -20     /* inference ranks: a client requests another model; no error */
} mpiserve_code;

typedef enum mpiserve_dtype {
  MPISERVE_BOOL = 0, /* one byte, 0 or 1 */
  MPISERVE_UINT8 = 1,
  MPISERVE_INT8 = 2,
  MPISERVE_INT16 = 3,
  MPISERVE_INT32 = 4,
  MPISERVE_INT64 = 5,
  MPISERVE_FLOAT16 = 6,
  MPISERVE_BFLOAT16 = 7,
  MPISERVE_FLOAT32 = 8,
  MPISERVE_FLOAT64 = 9,
  /* Since 0.5.0: */
  MPISERVE_UINT16 = 10,
  MPISERVE_UINT32 = 11,
  MPISERVE_UINT64 = 12,
  MPISERVE_COMPLEX64 = 13, /* two float32, the real part first, as float _Complex */
  MPISERVE_COMPLEX128 = 14 /* two float64, as double _Complex */
} mpiserve_dtype;

typedef enum mpiserve_role {
  MPISERVE_SIMULATION = 0,
  MPISERVE_INFERENCE = 1,
  /* Since 0.5.0, see mpiserve_open(): */
  MPISERVE_GATEWAY = 2, /* asks for clients outside of the job */
  MPISERVE_TRAINER = 3  /* learns from what is recorded, and publishes versions of models */
} mpiserve_role;

typedef enum mpiserve_transport {
  MPISERVE_SHARED = 0, /* one node: loads, stores and atomics on shared memory */
  MPISERVE_RMA = 1     /* between nodes: MPI Put and Get with flush */
} mpiserve_transport;

/* What a head does with a request that its queue has no room for. */
typedef enum mpiserve_on_full {
  MPISERVE_WAIT = 0,  /* leaves it where it is until there is room */
  MPISERVE_REJECT = 1 /* ends it with MPISERVE_EFULL */
} mpiserve_on_full;

/* Where a replica of a service is in its life: see mpiserve_service_state_get(). */
typedef enum mpiserve_state {
  MPISERVE_LAUNCHED = 0,   /* its rank is there and serves nothing: before loading, unloaded,
                              stopped, or a spare */
  MPISERVE_LOADING = 1,    /* its model is being loaded */
  MPISERVE_READY = 2,      /* it answers, and waits for requests */
  MPISERVE_BUSY = 3,       /* it answers, and computes a batch or holds requests */
  MPISERVE_SUSPENDED = 4,  /* it sends requests to other replicas: mpiserve_suspend() */
  MPISERVE_RESTARTING = 5, /* the same, until its model is there again */
  MPISERVE_FAILED = 6,     /* its model cannot be had: each request is an error */
  MPISERVE_GONE = 7        /* its rank has left the session */
} mpiserve_state;

/* What has answered a request: mpiserve_stats. */
typedef enum mpiserve_source {
  MPISERVE_MODEL = 0,   /* a replica of the service */
  MPISERVE_LOCAL = 1,   /* a local model, beside this rank: mpiserve_description */
  MPISERVE_FALLBACK = 2 /* some rows, or all, the caller's own function: mpiserve_fallback_set() */
} mpiserve_source;

/* What the rows of a request are to each other, for the model. */
typedef enum mpiserve_rows {
  MPISERVE_INDEPENDENT = 0, /* nothing: a batch merges requests, and may be cut */
  MPISERVE_TOGETHER = 1,    /* one field: a batch is one request, and waits for no other */
  /* Since 0.5.0: */
  MPISERVE_NO_ROWS = 2, /* there are none: the tensors have the shapes of the signature, and a batch
                           is one request */
  MPISERVE_RAGGED = 3   /* the same, but requests share a batch, whatever their free dimensions */
} mpiserve_rows;

typedef struct mpiserve_session mpiserve_session; /* opaque */
typedef struct mpiserve_service mpiserve_service; /* opaque, owned by the session */

/* A request by value. id 0 is no request. */
typedef struct mpiserve_request {
  uint64_t id;
} mpiserve_request;

/* Options of a request. All zero is the same as no options. */
typedef struct mpiserve_options {
  double deadline;  /* seconds from now until the request ends unanswered; 0: no deadline */
  int32_t priority; /* -100 to 100: the head takes higher ones first; 0: the default */
  /* For a service with free dimensions: results may have any that the outputs have room for, whose
     shape then says only that. When the request has ended with MPISERVE_OK, dimension d of output
     j of the call is result_shapes[j * MPISERVE_MAX_DIMS + d], and the result lies dense at the
     beginning of its data. The numbers must exist until then. NULL: see mpiserve_tensor */
  int64_t *result_shapes;
  /* A byte for each row of the request, one without rows (MPISERVE_NO_ROWS, MPISERVE_RAGGED),
     which must exist until it has ended. After MPISERVE_OK, 1:
     a model has answered the row, and its answer is trusted; 0: its uncertainty is above the limit
     (mpiserve_description.uncertain), or the fallback has answered it. NULL: nobody wants to know
   */
  uint8_t *trusted;
} mpiserve_options;

/* What every value of an output must be, or its row is no answer: bits of mpiserve_spec. */
typedef enum mpiserve_check {
  MPISERVE_FINITE = 1, /* neither NaN nor infinite; of a complex value, both parts */
  MPISERVE_BOUNDS = 2  /* min to max, both included, and no NaN; not of a complex dtype */
} mpiserve_check;

/* One tensor of a signature. shape[0] is -1 (the rows), the others are positive, or -1: free.
 * Without rows (MPISERVE_NO_ROWS, MPISERVE_RAGGED) none counts rows, and ndim may be 0: a scalar.
 */
typedef struct mpiserve_spec {
  char name[MPISERVE_NAME_SIZE];
  int32_t dtype; /* mpiserve_dtype */
  int32_t ndim;
  int64_t shape[MPISERVE_MAX_DIMS];
  int64_t max_shape[MPISERVE_MAX_DIMS]; /* of free dimensions, at most MPISERVE_MAX_FREE a side: the
                                           largest; else 0. Free ones are at least 1, or 0 with
                                           allow_empty */
  int32_t check;   /* of an output: bits of mpiserve_check, or 0: any value is an answer */
  double min, max; /* for MPISERVE_BOUNDS */
} mpiserve_spec;

/* One tensor of a call: the caller's memory, dense and C-contiguous. If name is NULL, the position
 * in the call says which tensor of the signature it is.
 * The model decides the free dimensions of an output, which must be those of shape, unless the
 * request has mpiserve_options.result_shapes; otherwise it ends with MPISERVE_ESHAPE. */
typedef struct mpiserve_tensor {
  const char *name;
  void *data;
  int32_t dtype;
  int32_t ndim;
  int64_t shape[MPISERVE_MAX_DIMS];
} mpiserve_tensor;

/* What an inference rank publishes of a service. */
typedef struct mpiserve_description {
  char name[MPISERVE_NAME_SIZE];
  char engine[MPISERVE_NAME_SIZE];  /* what runs the model, for people and logs */
  char version[MPISERVE_NAME_SIZE]; /* of the model, at open; "": it has no name */
  int32_t n_inputs, n_outputs;
  mpiserve_spec inputs[MPISERVE_MAX_TENSORS];
  mpiserve_spec outputs[MPISERVE_MAX_TENSORS];
  int64_t max_batch_rows; /* of a batch; at least 1. Larger requests are cut: mpiserve_submit().
                             With MPISERVE_NO_ROWS it is 1; with MPISERVE_RAGGED, requests */
  int64_t max_delay_ns;   /* how long a batch may wait for more rows */
  int64_t pool_bytes;     /* memory for payloads too large for a slot; 0: 256 MiB */
  double stickiness;      /* of clients: they choose another replica if it will answer in less than
                             1 - stickiness of the time; 0: 0.25; 1: all stay with their home */
  int64_t max_queue_rows; /* rows that wait at the head for a batch; 0: no limit */
  int32_t on_full;        /* mpiserve_on_full: what happens beyond that limit */
  int32_t rows;           /* mpiserve_rows: may requests share a batch? */
  int32_t allow_empty;    /* 1: a request may have 0 rows; the model never sees it */
  int32_t reproducible;   /* 1: a batch does not depend on time. It holds the next request of every
                             simulation rank, in the order of ranks, as many as fit, at the same
                             addresses each time, and waits for all that have not left. What waits
                             for max_delay_ns goes without the others: mpiserve_irregular_get().
                             Priorities do not count. Not with max_queue_rows, and by one replica */
  int32_t overwrites;     /* 1: output i takes the place of input i in the window: for a model
                             whose results may lie where its inputs were, such as echo */
  int32_t replica;        /* 0, 1, ... within the service */
  int32_t spare;          /* 1: it is stopped at first, and takes the place of replicas that die */
  int32_t uncertain; /* 1: outputs[n_outputs] is one more output of the model, which clients do not
                        see: how uncertain each row is, a float32 [-1] (or [], with
                        MPISERVE_NO_ROWS) whose check is MPISERVE_BOUNDS and whose max is the
                        limit. Above it, or NaN, and the row is not trusted. Not with free
                        dimensions or overwrites */
  int32_t error;     /* MPISERVE_OK, or why this replica can't serve */
  char error_text[MPISERVE_TEXT_SIZE];
  double local_timeout; /* seconds after which a local model that has not answered is ended */
  char local[MPISERVE_LOCAL_SIZE]; /* what starts a local model beside a client: the path of a
                                      program and its words, a newline after each. It is a part of
                                      mpiserve for Python. "": the service has no local models */
  int64_t cache_rows; /* the most rows that the head keeps with their answers, for all clients;
                         0: none. A row equal to one that is kept is answered with that, and the
                         model gets only the others. A request all of whose rows are kept waits for
                         no batch, and may end before earlier ones; its mpiserve_stats.batch_rows
                         is 0. Another model, by a change
                         (mpiserve_reload()) or mpiserve_engine_set(), begins with none. For
                         MPISERVE_INDEPENDENT rows of fixed shapes, and models that always answer
                         a row alike; not with reproducible or overwrites */
  double cache_step;  /* what is equal. 0: the bits are; else each floating number, of a complex one
                         both parts, is rounded to a multiple of it before rows are compared, but not
                         for the model */
} mpiserve_description;

/* The state of a replica. Times are nanoseconds since 1970 by the clock of its node. */
typedef struct mpiserve_replica_state {
  int32_t state;                       /* mpiserve_state */
  int32_t replica;                     /* 0, 1, ... within the service */
  int32_t rank;                        /* of its head, in the world */
  int64_t entered_ns[MPISERVE_STATES]; /* by mpiserve_state: when it was entered last; 0: never;
                                          of MPISERVE_BUSY: 0 while it is not busy */
} mpiserve_replica_state;

/* In-place memory: see mpiserve_buffer_take(). inputs[i] and outputs[j] are dense tensors of rows
 * rows, in the order of the signature. */
typedef struct mpiserve_buffer {
  uint64_t id; /* 0: no buffer */
  int64_t rows;
  void *inputs[MPISERVE_MAX_TENSORS];
  void *outputs[MPISERVE_MAX_TENSORS];
} mpiserve_buffer;

/* When a simulation asks, by time step, and how late the answer may be: see mpiserve_pace_open().
 * All zero is a request in each step, whose answer the step waits for. */
typedef struct mpiserve_pace_options {
  int64_t every;       /* steps from one request to the next; 0 is 1: each step asks */
  int64_t lag;         /* steps after its own in which the answer of a request is needed */
  int32_t extrapolate; /* 1: on a line through the last two answers; 0: the last one is held */
  int32_t priority;    /* of the requests: mpiserve_options */
  double deadline;     /* ..., over all the steps that an answer takes */
} mpiserve_pace_options;

/* Requests of a service that follow time steps. id 0 is no pace. */
typedef struct mpiserve_pace {
  uint64_t id;
} mpiserve_pace;

/* What is known of an answered request. All zero after a call in which no request ended. After an
 * error, 0 in what the head did not get to. */
typedef struct mpiserve_stats {
  int64_t rows;
  int64_t batch_rows;     /* rows of the batch that the request was part of; 0: all of its rows were
                             kept (mpiserve_description.cache_rows) */
  int64_t batch_requests; /* requests of that batch */
  int64_t queue_ns;       /* at the head, from taken to batch closed */
  int64_t compute_ns;     /* the model, for the whole batch */
  int64_t total_ns;       /* at the client, from submit to reply seen */
  int64_t generation;     /* of the model at that replica: 1, one more with each reload, and 0 after
                             65535 */
  int64_t source;         /* mpiserve_source */
  int64_t fallback_rows;  /* of the rows, those that the caller's fallback answered */
  int64_t local_rows;     /* of the rows, those that a local model answered */
  int64_t untrusted_rows; /* of the rows, those whose uncertainty is above the limit, whoever has
                             then answered them */
  /* Of mpiserve_pace_step(), else 0: */
  int64_t age;               /* steps since the one whose inputs were answered */
  int64_t extrapolated_rows; /* of the rows, those that were extrapolated; the others are held */
} mpiserve_stats;

/* Counters of this rank since open. Each piece of a request that was cut counts as a request. */
typedef struct mpiserve_counters {
  int64_t requests;         /* that ended here (simulation), answered here (inference) */
  int64_t rows;             /* of these; inference: of those answered with a result */
  int64_t errors;           /* of these, ended with another code than MPISERVE_OK */
  int64_t batches;          /* inference: batches formed */
  int64_t batches_in_place; /* inference: of these, needed no gathering copy */
  int64_t closed_by_rows;   /* inference: why a batch was closed */
  int64_t closed_by_census;
  int64_t closed_by_delay;
  int64_t rejected;          /* inference: of the errors, the queue was full */
  int64_t dropped;           /* inference: ..., the deadline passed before the model began */
  int64_t cancelled;         /* inference: ..., cancelled before the model began */
  int64_t rma_operations;    /* Put, Get and flush called by this rank */
  int64_t rma_to_simulation; /* of these, aimed at a simulation rank: always 0 */
  int64_t thread_polls;      /* progress calls made by the broker thread */
  int64_t engine_batches;    /* inference: of the batches, answered by an mpiserve_engine */
  int64_t batch_calls;       /* inference: calls of mpiserve_batch_next(), which is how often the
                                caller has looked in */
  int64_t fallbacks;         /* simulation: requests of which the fallback answered rows */
  int64_t failed_rows;       /* simulation: rows of results that failed the check of the outputs */
  int64_t rerouted;          /* simulation: sent again to another replica, as theirs had died or
                                stopped */
  int64_t local_answers;     /* simulation: requests of which a local model answered rows */
  int64_t untrusted_rows;    /* simulation: rows of results whose uncertainty was above the limit */
  int64_t paced_steps;       /* simulation: steps that mpiserve_pace_step() has answered */
  int64_t paced_age_sum; /* simulation: of these, the sum of the ages of the answers, in steps */
  int64_t paced_age_max; /* simulation: ..., the greatest of the ages */
  int64_t cache_lookups; /* inference: rows answered by services that keep answers
                            (mpiserve_description.cache_rows) */
  int64_t cache_hits;    /* inference: of these, had an answer that was kept; `rows` has them too */
  int64_t cached_requests; /* inference: of the requests, had only such rows: no batch was formed */
} mpiserve_counters;

/* A closed batch, as its inference rank sees it. The pointers are valid until the batch is
 * answered. Tensor i of the inputs is [rows, ...] at inputs[i]. With MPISERVE_RAGGED a row is as
 * large as max_shape says, and the tensor of its request lies dense at its beginning. */
typedef struct mpiserve_batch {
  int64_t rows;
  int32_t requests;
  int32_t in_place; /* 1: views of the window, no row was copied at the head */
  int32_t service;  /* index among the services that this rank published: 0, 1, ... */
  const void *inputs[MPISERVE_MAX_TENSORS];
  void *outputs[MPISERVE_MAX_TENSORS]; /* where results may be written directly */
} mpiserve_batch;

/* What runs a model in this process without the caller of mpiserve_batch_next(), who may be an
 * interpreter: see mpiserve_engine_set(). One thread at a time calls its functions, which call
 * neither this library nor MPI. */
typedef struct mpiserve_engine {
  void *state; /* the engine's own: it is passed to run and close */
  /* Computes rows rows: outputs[j] of inputs[i], dense tensors [rows, ...] in the order of the
     signature, at any address; outputs do not overlap inputs unless the description says
     overwrites. Returns 0, or another number after an error, with a text in text, which has room
     for bytes bytes; what the outputs hold then does not matter, but the inputs are as before. */
  int (*run)(void *state, int64_t rows, const void *const *inputs, void *const *outputs, char *text,
             size_t bytes);
  void (*close)(void *state); /* frees the engine; may be NULL */
  int64_t chunk_rows; /* the most rows that run gets at a time, where rows are independent and
                         outputs do not overwrite inputs; 0: all of a batch */
  int32_t by_request; /* 1: run gets the rows of each request where they lie, not those of a batch
                         side by side, and its time is not measured: for what costs no more than
                         the copy, such as echo. The rows may be less aligned than their type */
  int32_t in_segment; /* 1: run gets tensors in the memory of mpiserve_segment_get() alone, so rows
                         in a window of MPI are copied there: for an engine that hands them over to
                         another process, which cannot map the window */
} mpiserve_engine;

/* The function that a library of engines exports by the name of MPISERVE_ENGINE_ENTRY: makes an
 * engine for a model, which is any text that the library understands, such as a path, and for the
 * tensors and max_batch_rows of the description, in which an uncertainty is the last of the
 * outputs. Returns 0, or another number and a text: also if
 * version is not the MPISERVE_ENGINE_VERSION that the library was compiled with. */
typedef int (*mpiserve_engine_entry)(int version, const char *model,
                                     const mpiserve_description *description,
                                     mpiserve_engine *engine, char *text, size_t bytes);

/* What is copied of the requests to a service and of their answers, and where to: see
 * mpiserve_capture_set(). */
typedef struct mpiserve_capture {
  void *memory;   /* zero at first: a ring, from which another process of the same version reads; */
  int64_t bytes;  /* of it */
  int32_t reader; /* a pidfd of that process, or -1 */
  int32_t waits;  /* 1: an answer waits for room in the ring; 0: it is dropped and counted */
  int32_t model;  /* any number, which is copied to each record */
  int32_t untrusted; /* 1: of the answers only rows whose uncertainty is above the limit, or NaN
                        (mpiserve_description.uncertain), none of a service without it; 0: all */
  int64_t every_batches, every_steps; /* 0 or 1: all */
  double share;                       /* of the requests, from 0 to 1 */
  uint64_t seed;                      /* which ones */
} mpiserve_capture;

/* The models of a service that has a local and a remote one: mpiserve_placement. */
typedef enum mpiserve_side {
  MPISERVE_SIDE_LOCAL = 1, /* of this rank */
  MPISERVE_SIDE_REMOTE = 2 /* at a server */
} mpiserve_side;

/* Where the requests to such a service are answered: see mpiserve_placement_set(). */
typedef struct mpiserve_placement {
  int64_t side;    /* mpiserve_side: which model answers now */
  int64_t breaker; /* the circuit breaker. 0: closed, 1: open, no requests go to the server, 2:
                      half-open, a copy of one request decides */
  int64_t local_rows, remote_rows; /* rows that each model has answered */
  int64_t returned_rows; /* rows that the server did not answer in time; the local model has */
  int64_t changes;       /* how often the side has changed */
  int64_t opened;        /* how often the circuit breaker has opened */
  /* What it takes now, as measured: a call, and in addition each row. 0: not measured yet. */
  int64_t local_call_ns, local_row_ns, remote_call_ns, remote_row_ns;
} mpiserve_placement;

/* A request that is answered after its batch: see mpiserve_batch_hold(). id 0 is no ticket. */
typedef struct mpiserve_ticket {
  uint64_t id;
  int64_t row, rows; /* its first row in the batch, and their number */
  int32_t client;    /* the world rank that submitted it */
  int32_t service;   /* as in its batch */
} mpiserve_ticket;

/* A step in which a head changes its model. */
typedef enum mpiserve_change {
  MPISERVE_LOAD = 1,   /* load a version beside the one that answers */
  MPISERVE_SWAP = 2,   /* answer with the loaded version, and free the other one */
  MPISERVE_DROP = 3,   /* free the loaded version, if there is one */
  MPISERVE_UNLOAD = 4, /* free the version that answers; from now on requests end with errors */
  MPISERVE_START = 5,  /* resume, and load the model; MPISERVE_ESTATE: serves another service */
  MPISERVE_STOP = 6,   /* suspend, and free the model */
  MPISERVE_REPLACE = 7 /* MPISERVE_START for a rank that died, whose number version is; answered
                          before the model is loaded, and MPISERVE_OK if that was done before */
} mpiserve_change;

/* What a client requests of a head: see mpiserve_change_get(). */
typedef struct mpiserve_change_request {
  int32_t service;                  /* index among the services of this rank */
  int32_t what;                     /* mpiserve_change */
  int32_t client;                   /* the world rank of the client */
  char version[MPISERVE_NAME_SIZE]; /* of MPISERVE_LOAD; "": the same again */
} mpiserve_change_request;

/* Memory that other processes may map: see mpiserve_segment_get(). */
typedef struct mpiserve_segment {
  void *memory;
  int64_t bytes;
  int32_t fd; /* of its file, which has no name */
} mpiserve_segment;

/* A part of it, from offset on. */
typedef struct mpiserve_range {
  int64_t offset, bytes;
} mpiserve_range;

/* Where the time of a request goes, in the order in which it gets there: see
 * mpiserve_profile_get(). */
typedef enum mpiserve_stage {
  MPISERVE_STAGE_SLOT = 0,      /* until it can be sent: four are under way, or rows are lent out */
  MPISERVE_STAGE_COPY_IN = 1,   /* its rows are copied: to the head, and there into one batch */
  MPISERVE_STAGE_TRANSPORT = 2, /* until a head that has nothing else to do takes it */
  MPISERVE_STAGE_QUEUE = 3,     /* the head runs batches that are before it */
  MPISERVE_STAGE_BATCH = 4,     /* its batch waits for other ranks: the census, or max_delay */
  MPISERVE_STAGE_ENGINE = 5,    /* the model runs its batch */
  MPISERVE_STAGE_REPLY = 6,     /* the head writes its results, and those before it */
  MPISERVE_STAGE_BACK = 7,      /* until its client, which waits, sees them */
  MPISERVE_STAGE_COPY_OUT = 8,  /* they are copied into the caller's tensors */
  MPISERVE_STAGE_TAKE = 9,      /* they are there, and the caller does not look */
  MPISERVE_STAGE_UNANSWERED = 10 /* no model has answered: errors, time-outs, fallbacks */
} mpiserve_stage;

/* What MPISERVE_PROFILE has measured on this rank: see mpiserve_profile_get(). The sums are over
 * all services, and 0 on inference ranks. */
typedef struct mpiserve_profile {
  int32_t on;        /* 1: the session is profiled */
  int32_t reports;   /* 1: this rank is to show the report: the first inference rank */
  int64_t run;       /* a number of the session, the same on all ranks */
  int64_t requests;  /* that have ended */
  int64_t total_ns;  /* from submit until the caller had them */
  int64_t waited_ns; /* of these, the caller waited in a call of the library */
  int64_t stages_ns[MPISERVE_STAGES]; /* of total_ns, by mpiserve_stage */
  char file[MPISERVE_TEXT_SIZE];      /* where the report is to be */
} mpiserve_profile;

/* What an inference rank has waited for since long: see mpiserve_waiting_get(). */
typedef enum mpiserve_waits {
  MPISERVE_WAITS_NOT = 0,      /* it has not waited for long */
  MPISERVE_WAITS_TO_BEGIN = 1, /* no request has come yet */
  MPISERVE_WAITS_ON = 2,       /* requests came and have stopped, and no rank has left */
  MPISERVE_WAITS_TO_LEAVE = 3, /* some simulation ranks have left, and others have not */
  MPISERVE_WAITS_FOR_ROUND = 4 /* a reproducible service lacks requests of some simulation ranks */
} mpiserve_waits;

/* ---- library: any rank, at any time, local ------------------------------- */

/* mpiserve_version: "major.minor.patch" of the loaded library. */
const char *mpiserve_version(void);

/* mpiserve_mpi_build, mpiserve_mpi_runtime: how the MPI library describes itself, at build time (in
 * the mpi.h that this library was compiled with) and at run time. Both are static. */
const char *mpiserve_mpi_build(void);
const char *mpiserve_mpi_runtime(void);

/* mpiserve_strerror: the fixed English text of a code; never NULL. */
const char *mpiserve_strerror(int code);

/* mpiserve_last_error: details of the last failure in this thread; never NULL, "" if there was
 * none. Valid until this thread's next call. */
const char *mpiserve_last_error(void);

/* mpiserve_error: for layers over this library, such as bindings: make text this thread's last
 * error (NULL: the text of the code; beyond 1 KiB it is cut), and return code. */
int mpiserve_error(int code, const char *text);

/* mpiserve_dtype_name, mpiserve_dtype_size: "float32" and 4; NULL and 0 if dtype is none. */
const char *mpiserve_dtype_name(int dtype);
size_t mpiserve_dtype_size(int dtype);

/* ---- session --------------------------------------------------------------- */

#ifndef MPISERVE_NO_MPI
/* mpiserve_open: join the session of a world. Collective over world; ranks may hold the roles in
 * any order; at least one rank holds each.
 *
 * On simulation ranks it returns when every inference rank has published its services (the models
 * are loaded and warm). On inference ranks it returns when the partition is known, and
 * mpiserve_publish() must follow.
 *
 * A gateway or trainer rank calls the functions of simulation ranks, but mpiserve_fail(). No batch
 * waits for it, it is not in the communicator of the simulation ranks, and the session ends without
 * it: when the last simulation rank has left, the states of all replicas are MPISERVE_GONE, and it
 * has 5 s to take its replies and to close.
 *
 * Wrong arguments fail at once, on the ranks that give them. So does a second session of the same
 * ranks before the first is closed: MPISERVE_ESTATE, which leaves *session as it is; after other
 * failures it is NULL. If any rank fails otherwise, every rank gets the same code:
 * MPISERVE_EVERSION, MPISERVE_ETHREAD, MPISERVE_ECONFIG (also when a rank calls
 * mpiserve_open_failed()). MPISERVE_ETIMEOUT after MPISERVE_OPEN_TIMEOUT seconds (environment,
 * default 600) if some rank never came; the caller can then only abort MPI. */
int mpiserve_open(MPI_Comm world, int role, mpiserve_session **session);

/* mpiserve_open_f: the same, with the communicator as a Fortran handle. */
int mpiserve_open_f(MPI_Fint world, int role, mpiserve_session **session);

/* mpiserve_open_failed: a rank that cannot take part (its configuration is wrong) calls this in
 * place of mpiserve_open(). Every rank's open then returns code with this text. Collective over
 * world. Returns code. */
int mpiserve_open_failed(MPI_Comm world, int role, int code, const char *text);
int mpiserve_open_failed_f(MPI_Fint world, int role, int code, const char *text);

/* mpiserve_open_pair: join a session of two processes of one node that have no MPI world in common:
 * for a simulation without a launcher, such as a notebook. It serves the Python package, which
 * starts the other process. One is the simulation rank, with world rank 0, the other one the
 * inference rank, with world rank 1. Each has started MPI, alone; either may call first.
 *
 * file is a descriptor of a file that both map (memfd_create), for one session: of at least
 * MPISERVE_PAIR_BYTES bytes, zero at first. peer is a descriptor of the other process (pidfd_open).
 * Both stay the caller's; peer stays open until the call returns.
 *
 * interrupted, which may be NULL, is called with data now and then while the call waits, for models
 * that load for long: if it returns other than 0, the call ends with MPISERVE_ECANCELLED, and the
 * other process is of no use any more.
 *
 * Returns as mpiserve_open() does, with the same errors; MPISERVE_EPEER if the other process has
 * ended; MPISERVE_ECONFIG if MPISERVE_TRANSPORT is rma.
 *
 * mpiserve_comm() is a communicator of this process alone, and a process may have several such
 * sessions at a time. MPI_Finalize waits for nobody, also if the other process has died. */
int mpiserve_open_pair(int file, int peer, int role, int (*interrupted)(void *data), void *data,
                       mpiserve_session **session);

/* mpiserve_comm: the communicator of the ranks that have this rank's role, in the order of the
 * world. Owned by the session. Local. */
int mpiserve_comm(mpiserve_session *session, MPI_Comm *comm);
int mpiserve_comm_f(mpiserve_session *session, MPI_Fint *comm);
#endif

/* mpiserve_role_of: the role of a rank of the world. Local. */
int mpiserve_role_of(mpiserve_session *session, int world_rank, int *role);

/* mpiserve_counters_get: this rank's counters. Local. */
int mpiserve_counters_get(mpiserve_session *session, mpiserve_counters *counters);

/* mpiserve_step: a time step of the simulation begins, and the one before ends; the last one ends
 * with mpiserve_close(). With MPISERVE_PROFILE=summary or trace (environment of any rank, read at
 * open), the report says how long each step waited for models, and why; without it the call does
 * nothing.
 * Simulation ranks; local.
 *
 * mpiserve_profile_get: what was measured. Each rank keeps it in a file of its own, in the folder
 * that has the name of the report with .parts in place of .json, where it is whole however the rank
 * ends. The report is written by `python -m mpiserve serve` and `run`, and by
 * `python -m mpiserve report FOLDER`. MPISERVE_PROFILE_FILE (environment of each rank) names it;
 * else it is mpiserve-profile.json. With MPISERVE_PROFILE=trace a second file of each rank there
 * holds its last events, which `python -m mpiserve trace` shows. Any rank; local. */
int mpiserve_step(mpiserve_session *session);
int mpiserve_profile_get(mpiserve_session *session, mpiserve_profile *profile);

/* mpiserve_fail: report, before mpiserve_close(), that this simulation rank ended with an error.
 * Requests of the other simulation ranks then end with MPISERVE_EPEER and this text. Simulation
 * ranks; blocks until every inference rank has taken the message, maybe after its running batch. */
int mpiserve_fail(mpiserve_session *session, const char *text);

/* mpiserve_close: leave the session. Collective; waits for what is in flight, then frees all that
 * the session owns, so that its handles, services and requests included, are MPISERVE_ESTATE.
 * Requests that the caller did not wait for have ended, and their outputs are written. An inference
 * rank calls it when mpiserve_batch_next() has returned MPISERVE_ECLOSED. NULL is allowed. After
 * MPI_Finalize it returns MPISERVE_ESTATE and frees nothing. MPI_Finalize closes what is open; then
 * mpiserve_last_error() says what went wrong, if anything.
 *
 * It waits at most MPISERVE_CLOSE_TIMEOUT seconds (environment, default 30) for the inference
 * ranks, and then for the other ranks to close: these may compute for hours, and nobody needs this
 * one any more, so the session is closed all the same, and what all free together is freed in
 * MPI_Finalize. Whatever it returns, the session is closed:
 *   MPISERVE_ETIMEOUT  inference ranks did not answer in time; the text names them, and says what
 *                      they do, as far as can be seen: busy, stopped, silent.
 *   MPISERVE_EPEER     ranks have died, which the text names. MPI_Finalize may wait for them for
 *                      ever: end the process with _exit().
 *
 * mpiserve_close_within: the same, with a limit of timeout seconds. */
int mpiserve_close(mpiserve_session *session);
int mpiserve_close_within(mpiserve_session *session, double timeout);

/* mpiserve_lost_get: how many ranks of the world are known to have died, where the launcher lets
 * the others live. text, of MPISERVE_TEXT_SIZE bytes or NULL, names them, with process and host.
 * A simulation rank that has died counts as one that has left. A request whose inference rank has
 * died goes to another replica, or ends with MPISERVE_EPEER. Ranks of other nodes are seen only
 * with an MPI that goes on after a failure (Open MPI 5: mpirun --with-ft ulfm). Local. */
int mpiserve_lost_get(mpiserve_session *session, int *count, char *text);

/* ---- services: simulation ranks -------------------------------------- */

/* mpiserve_service_count, mpiserve_service_at: the services of the world. Local. */
int mpiserve_service_count(mpiserve_session *session, int *count);
int mpiserve_service_at(mpiserve_session *session, int index, mpiserve_service **service);

/* mpiserve_service_find: a service by name. MPISERVE_ENOTFOUND if there is none (the text lists
 * the services), MPISERVE_EMODEL if every replica failed to load (with its text). From then on the
 * service's census counts this rank: batches wait for it, a little. Waits only for a free slot. */
int mpiserve_service_find(mpiserve_session *session, const char *name, mpiserve_service **service);

/* mpiserve_service_describe: what was published. engine and limits are those of this rank's home
 * replica, replicas is the number that can serve, head and transport are the world rank of home
 * and the way there: all as at open. Any output may be NULL. */
int mpiserve_service_describe(mpiserve_service *service, mpiserve_description *description,
                              int *replicas, int *head, int *transport);

/* mpiserve_service_state_get: the state of the n-th replica of a service, 0, 1, ..., those included
 * that could not load their model; or with n = -1 of the one that can serve best. The state may
 * have changed when the call returns. On a node it is a load; between nodes a Get, which may wait
 * as long as a submit. MPISERVE_ENOTFOUND: no such service; MPISERVE_EARG: no such replica.
 *
 * mpiserve_service_wait_ready: wait until a replica is MPISERVE_READY or MPISERVE_BUSY, at most
 * timeout seconds. When mpiserve_open() returns, each service is ready or has failed; this is for
 * services that were suspended or unloaded, or whose model restarts. MPISERVE_EMODEL, at once, if
 * every replica has failed or is gone, with ranks and times; MPISERVE_ETIMEOUT. Blocking. */
int mpiserve_service_state_get(mpiserve_session *session, const char *name, int n,
                               mpiserve_replica_state *state);
int mpiserve_service_wait_ready(mpiserve_session *session, const char *name, double timeout);

/* ---- requests: simulation ranks ------------------------------------------------ */

/* mpiserve_submit: begin one request of n rows. Tensors match the signature by name, or by position
 * where name is NULL. Inputs must not change, and outputs must not be touched, until the request
 * has ended. Checked here, without communication: MPISERVE_ENAME, _EDTYPE, _ESHAPE, _EROWS.
 *
 * n is at least 1; if the service allows it (mpiserve_description.allow_empty), also 0: such a
 * request has its turn as any other, and ends before the model runs. Data of 0 rows may be NULL.
 * With MPISERVE_NO_ROWS and MPISERVE_RAGGED each tensor has the shape of the signature; for a
 * scalar, which has no dimension, one of shape [1] is as good.
 *
 * A request of more than max_batch_rows rows is cut into pieces of that many rows and a rest, and
 * is still one request: it ends when all have ended, or with the error of the first piece that has
 * one. Pieces may be answered by different replicas, and, if the model is reloaded meanwhile, by
 * different versions; each one needs room in the queue. Statistics are those of its last piece, but
 * for rows, fallback_rows, local_rows, untrusted_rows and total_ns. MPISERVE_EROWS if rows belong
 * together (MPISERVE_TOGETHER), if tensors have free dimensions, if there would be over 65536
 * pieces, or if outputs overlap inputs otherwise than row by row.
 *
 * Where a service has several replicas, each request goes to the one that will answer it first, as
 * far as this rank knows, so requests may end in another order than that of their submission.
 * Requests that use a buffer go to the home replica; all do if stickiness is 1.
 *
 * Never waits. Requests to one replica are sent in the order of their submission. If a request
 * cannot be sent at once (4 requests are in flight there, or the head must lend memory first),
 * later calls of test, wait, submit or cancel send it.
 *
 * options may be NULL: no deadline, and priority 0. A request that has not ended at its deadline
 * ends with MPISERVE_EDEADLINE: in test or wait, and also at the head if the model has not begun
 * with it. The model then never sees it, so a late head loses no model time. The head counts the
 * seconds from when it first saw the request; a request waits for others at most half of them.
 *
 * When more requests wait than a batch holds, the head takes those of higher priority first, and
 * equal ones in the order of arrival. Requests of one simulation rank keep their order: an earlier
 * one gets the later one's priority if that is higher. Every eighth batch is filled in the order
 * of arrival, so low priorities wait, but not for ever. MPISERVE_EARG if deadline or priority is
 * out of range. */
int mpiserve_submit(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                    int n_outputs, const mpiserve_tensor *outputs, const mpiserve_options *options,
                    mpiserve_request *request);

/* mpiserve_test: has the request ended? done is 0 or 1. When 1, the call returns the code that the
 * request ended with, outputs hold the result if that is MPISERVE_OK, and request becomes no
 * request (id 0). stats may be NULL. Non-blocking, but for a fallback: mpiserve_fallback_set(). */
int mpiserve_test(mpiserve_session *session, mpiserve_request *request, int *done,
                  mpiserve_stats *stats);

/* mpiserve_wait: wait until the request has ended, at most timeout seconds. Returns the code that
 * it ended with; request becomes no request. On MPISERVE_ETIMEOUT the request goes on: wait again,
 * or cancel it. */
int mpiserve_wait(mpiserve_session *session, mpiserve_request *request, double timeout,
                  mpiserve_stats *stats);

/* mpiserve_cancel: end the request without a result; request becomes no request. A model that has
 * not begun with it never sees it. Its tensors may be reused when the call returns, except rows of
 * a buffer: see mpiserve_buffer_take(). Waits only for what cannot be undone, never for a model. */
int mpiserve_cancel(mpiserve_session *session, mpiserve_request *request);

/* mpiserve_infer: submit and wait; a time-out cancels the request. */
int mpiserve_infer(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                   int n_outputs, const mpiserve_tensor *outputs, double timeout,
                   mpiserve_stats *stats);

/* mpiserve_pace_open: couple a service to the time steps of this rank, by one call of
 * mpiserve_pace_step() in each step in place of mpiserve_infer(). Local. A rank may have several
 * paces of one service, such as one for each stage of a scheme. MPISERVE_EARG: a number is out of
 * range, over 64 requests would be under way, an output cannot be extrapolated, whose dtype is
 * none of float32, float64, complex64, complex128, the service is reproducible, and every is not 1
 * or lag not 0, or the service says how uncertain rows are (mpiserve_description.uncertain).
 *
 * mpiserve_pace_step: do one step. Steps are the calls of the pace, 0, 1, ...; the tensors are
 * those of mpiserve_submit(). Step n asks if n is a multiple of every: its inputs are copied, and
 * may change when the call returns. It fills the outputs with the answer of the newest step that
 * asked and is at least lag steps ago, and waits for that answer. So
 *   - with every = 1 the answer is that of step n - lag, whenever it has come: ranks that go on at
 * different speeds have answers of the same step, and so has the same run;
 *   - it is never older than lag + every - 1 steps, which mpiserve_stats.age says;
 *   - a model hides behind lag steps of the simulation;
 *   - as long as no step is lag steps ago, the answer is that of step 0, which step 0 waits for.
 *
 * With extrapolate, an answer that is not of this very step is continued by the line through it and
 * the one before. It is held where there is none before it, or not one and the same model has given
 * all rows of both (mpiserve_stats.generation and source), and in the rows where the line leaves
 * what the signature allows (mpiserve_spec.check; all rows, if they belong together).
 *
 * If rows or free dimensions differ from those of the step before, the answers that are there are
 * not of these rows: the pace begins anew, as at step 0. So it does after an error. Results must
 * have the shapes of the outputs. Outputs may be the memory of inputs.
 *
 * A request may end with an error steps before its answer is due; the call that needs the answer
 * returns its code, and how many steps ago it asked. mpiserve_fallback_set() works as for other
 * requests, on the inputs of the step that asked, and in the call that needs the answer. After
 * MPISERVE_ETIMEOUT the step is not over: call again with the same tensors, whose inputs are not
 * read again, or restart; a fallback answers at the deadline of the options. Tensors that do not
 * fit the signature are no step, and change nothing; a request of too many rows that cannot be cut,
 * and a result of another shape, are errors of the step. stats, which may be NULL, is of the
 * request that was answered.
 *
 * mpiserve_pace_restart: forget the answers, and cancel what is under way: the next step asks and
 * waits. For when rows are others, though as many: after a new mesh or particles that were sorted.
 * A program that does so when it writes a checkpoint gets answers of the same steps from there on
 * as one that starts from the checkpoint.
 *
 * mpiserve_pace_close: cancel what is under way and free the pace, which becomes no pace (id 0).
 * It never waits for a model. mpiserve_close() frees those that are open, and waits for what is
 * under way.
 *
 * MPISERVE_ESTATE: the pace was closed, or is of another service. */
int mpiserve_pace_open(mpiserve_service *service, const mpiserve_pace_options *options,
                       mpiserve_pace *pace);
int mpiserve_pace_step(mpiserve_service *service, const mpiserve_pace *pace, int n_inputs,
                       const mpiserve_tensor *inputs, int n_outputs, const mpiserve_tensor *outputs,
                       double timeout, mpiserve_stats *stats);
int mpiserve_pace_restart(mpiserve_service *service, const mpiserve_pace *pace);
int mpiserve_pace_close(mpiserve_service *service, mpiserve_pace *pace);

/* mpiserve_record: put pairs of n rows that the caller has computed itself, such as its physics,
 * into the capture of the service, beside the requests. Tensors are those of mpiserve_submit();
 * the outputs are read, not written. All tensors may change when the call returns.
 *
 * kept, which may be NULL, is 0 with an error, and if nothing was sent, because nobody captures the
 * service: the session is not captured (MPISERVE_CAPTURE is not set on any rank at mpiserve_open(),
 * nor [capture] in the configuration), or this service is not, as a record before has shown, or it
 * has free dimensions. Then the call costs next to nothing, so programs need no case for it.
 *
 * Rows that a fallback has answered because a model was not trusted with them, or failed the check
 * of a service that has an uncertainty (mpiserve_description.uncertain), are recorded by the
 * library in the same way, with the model's uncertainty. In pairs of the caller's own that is NaN.
 *
 * No answer is waited for. Rows go to the home replica, which takes them between batches, also
 * while its service is suspended, has no model, or its queue is full; or to another one if its
 * rank has died or stopped. What cannot be sent at once is copied, and later calls send it. The
 * call waits only while over 64 MiB of this rank's copies wait for the same inference rank, and
 * ends with MPISERVE_EPEER if that has died or stopped, and with MPISERVE_ETIMEOUT if it takes
 * none of them for MPISERVE_CLOSE_TIMEOUT seconds (default 30). Where a full ring costs rows
 * (mpiserve_capture.waits), it costs recorded ones too. The error of a record, such as
 * MPISERVE_EPEER if an inference rank has died with rows, is that of the next call of
 * mpiserve_record(), which sends nothing then, or of close. */
int mpiserve_record(mpiserve_service *service, int n_inputs, const mpiserve_tensor *inputs,
                    int n_outputs, const mpiserve_tensor *outputs, int *kept);

/* mpiserve_fallback_set: let a function of the caller's, such as the physics that the model stands
 * for, answer the requests of this rank that the service does not. NULL: none, as at the beginning.
 * It holds for all requests to the service that end from now on. Local. MPISERVE_EARG: the service
 * has free dimensions, which a function would not be told.
 *
 * It is called when a request ends with an error that is not the caller's, and that no local model
 * answers, and fills the outputs.
 * Then the call returns MPISERVE_OK, and mpiserve_stats and mpiserve_counters say who answered:
 *
 *   MPISERVE_EMODEL, and codes of   the model failed, is unloaded, or serves nowhere     yes
 *     mpiserve_batch_fail()
 *   MPISERVE_EFULL, _ENOMEM         the head had no room for it                           yes
 *   MPISERVE_EDEADLINE              its deadline passed                                   yes
 *   MPISERVE_ETIMEOUT               of mpiserve_infer(), which ends the request           yes
 *                                   of mpiserve_wait(), after which it goes on            no
 *   MPISERVE_EPEER                  its inference rank is gone, and no other serves       yes
 *                                   another simulation rank reported an error             no
 *   MPISERVE_ECANCELLED             the caller ended it                                   no
 *   MPISERVE_EARG, _ESTATE, _ENAME, the call is wrong                                     no
 *     _EDTYPE, _ESHAPE, _EROWS
 *   MPISERVE_EMPI                   MPI failed, and the session with it                   no
 *
 * If the service has local models (mpiserve_description.local), the same errors go to one first,
 * but for MPISERVE_EMODEL of a replica that lives and has its model: that model would do the same
 * again. The first such request starts the local model, a process that this rank shares memory
 * with, and waits until it is loaded. The thread that would run the function waits for it, at most
 * local_timeout seconds. Its process ends in mpiserve_close(), or with this process. If it fails,
 * why has its text too.
 *
 * function gets data as it was given here; rows, 1 or more (a request of 0 rows needs no answer,
 * and ends with MPISERVE_OK); inputs[i] and outputs[j], dense tensors of rows rows in the order of
 * the signature, which it must not keep; code and why: the
 * error that the call would return. It returns 0 when all outputs are filled. Otherwise the call
 * returns code, with why and the function's own text, which it sets by mpiserve_error(). A C++
 * exception must not leave it.
 *
 * Rows of a result that the signature's outputs do not allow (mpiserve_spec.check) are the model's
 * failure: MPISERVE_EMODEL, with the output, row and value. So are rows that are not trusted
 * (mpiserve_description.uncertain), but without a function these are answers all the same, which
 * mpiserve_options.trusted and mpiserve_stats.untrusted_rows mark. Only these rows, of both kinds,
 * go to the function, in one call for each piece and in their order, and the others stay what they
 * are; if the rows of a request belong together (mpiserve_rows), all of them go. None can go if the
 * caller's outputs are the memory of its inputs, which the result has replaced. What the function
 * returns is not checked.
 *
 * The thread that calls mpiserve_infer(), mpiserve_wait() or mpiserve_test() runs it, before the
 * call returns and for as long as it takes, also beyond a time-out. No other call runs it: not
 * submit, cancel or close. The thread has the session, so a call of the same session, service or
 * request in the function is MPISERVE_ESTATE. It may call MPI as the caller may.
 *
 * If a request is given up at its deadline or time-out while its outputs are rows of a buffer, the
 * model may still write there, so the fallback is not called and the text says so. The same is true
 * where a service overwrites rows of a buffer that are inputs and outputs, and its model may have
 * begun with them, and where outputs are the memory of inputs and have begun to arrive from another
 * node: then no other replica gets the request either. */
int mpiserve_fallback_set(mpiserve_service *service,
                          int (*function)(void *data, int64_t rows, const void *const *inputs,
                                          void *const *outputs, int code, const char *why),
                          void *data);

/* mpiserve_buffer_take: get memory for requests of up to rows rows that need no copy: give its
 * pointers, or pointers to a later row of it, as the data of tensors. Where client and head share
 * a node it is part of the head's window, which the model reads and writes; elsewhere it is this
 * rank's own memory, as good as any other. All inputs of a call are in place if they begin at one
 * row of one buffer, and are copied otherwise; so are outputs. Inputs and outputs may be of two
 * buffers. A service that overwrites (mpiserve_description) has its results where the inputs were.
 *
 * Such rows are memory of the head. If a request that uses them is cancelled, or given up at its
 * deadline or after a time-out of mpiserve_infer(), a model that has begun with it goes on reading
 * and writing them. Then give the buffer back and take another one: nobody else gets the rows
 * before the model has ended. The same is true of a request that ends with MPISERVE_EPEER because
 * its head has stopped: until the head has answered, a request with tensors in that buffer is
 * refused with MPISERVE_EPEER.
 *
 * With free dimensions each row has room for the largest, and tensors lie dense from the beginning
 * of a row on.
 *
 * Blocking: the head answers between two batches. MPISERVE_EROWS beyond max_batch_rows;
 * MPISERVE_ENOMEM if 8 buffers of this service are taken, or its pool is full: the text
 * says which of pool_bytes and max_batch_rows limits it. The caller owns the buffer until it gives
 * it back. After mpiserve_close() a buffer that was not given back stays readable until the process
 * ends. */
int mpiserve_buffer_take(mpiserve_service *service, int64_t rows, mpiserve_buffer *buffer);

/* mpiserve_buffer_give: give a buffer back; its memory must not be touched any more, and buffer
 * becomes no buffer (id 0). A cancelled request that the head still works on keeps the rows until
 * it has ended. MPISERVE_ESTATE: the buffer was given back before, or a request uses it that was
 * neither waited for nor cancelled. Never waits. */
int mpiserve_buffer_give(mpiserve_service *service, mpiserve_buffer *buffer);

/* mpiserve_reload: load another version of a service's model while the simulation goes on. One
 * simulation rank calls it, at any time; another one that does so meanwhile gets MPISERVE_ESTATE.
 * The configuration of the service gives the name in version a meaning; NULL or "" reads the
 * current version again. Blocking, at most timeout seconds: first every replica loads, and answers
 * with the current version meanwhile; then every replica changes between two batches, when held
 * requests have ended. Other services are not affected.
 *
 * MPISERVE_OK: the new version answers what any rank submits from now on. Otherwise the text says
 * which rank could not load it and why, and no replica has changed, unless the configuration has
 * no memory for both versions: then the other replicas have changed. After MPISERVE_ETIMEOUT
 * nothing has changed if loading took too long, and this rank's next requests may wait until
 * loading ends; if a batch, or earlier requests of this rank, took too long, the replica changes
 * when these have ended.
 *
 * mpiserve_unload: free the model and its memory. Requests to the service, also those that wait in
 * its queue, end with MPISERVE_EMODEL, until a reload. After MPISERVE_ETIMEOUT it happens later. */
int mpiserve_reload(mpiserve_session *session, const char *name, const char *version,
                    double timeout);
int mpiserve_unload(mpiserve_session *session, const char *name, double timeout);

/* mpiserve_scale: let so many replicas of a service serve. They load their models, and take
 * requests from then on; or they send those that they have to the other replicas, and free their
 * models. The replicas of the configuration start first, then spare ranks, and spare ranks stop
 * first. A spare rank serves one service at a time, or those of one pool. One simulation rank calls
 * it; another one may call it at the same time, and the later one decides. Blocking, at most
 * timeout seconds, until the models answer or are freed.
 *
 * mpiserve_start: scale to the number of the configuration. mpiserve_stop: scale to 0.
 * Requests to a service that serves nowhere end with MPISERVE_EMODEL.
 *
 * MPISERVE_EARG if the session has fewer replicas and spares of this service.
 * MPISERVE_ESTATE, with what each rank said, if no spare is left, or a replica cannot be stopped:
 * one of several ranks, or of an adaptive pool. MPISERVE_EMODEL if a model cannot be loaded. After
 * MPISERVE_ETIMEOUT it happens later. */
int mpiserve_scale(mpiserve_session *session, const char *name, int replicas, double timeout);
int mpiserve_start(mpiserve_session *session, const char *name, double timeout);
int mpiserve_stop(mpiserve_session *session, const char *name, double timeout);

/* ---- serving: inference ranks ------------------------------------------------------ */

/* mpiserve_publish: announce the n services of this rank, each ready or failed
 * (description->error). Collective over the world, whose simulation ranks are in mpiserve_open().
 * MPISERVE_ECONFIG if replicas of one service differ in signature or limits, or if two of the n
 * services have one name. A wrong description makes only its own service fail. Services with a
 * ready batch are served in turn, and each batch names its service. */
int mpiserve_publish(mpiserve_session *session, int n, const mpiserve_description *descriptions);

/* mpiserve_batch_next: wait for a batch, at most timeout seconds. MPISERVE_ETIMEOUT: call again;
 * after a long silence its text is that of mpiserve_waiting_get(). MPISERVE_ECLOSED: every
 * simulation rank has left; call mpiserve_close(). MPISERVE_ECHANGE, once for each: a client
 * requests another model; see mpiserve_change_get(). Batches of a service with an engine do not
 * come here: see mpiserve_engine_set(). */
int mpiserve_batch_next(mpiserve_session *session, double timeout, mpiserve_batch *batch);

/* mpiserve_batch_shapes_get: the shapes of the inputs of the batch that is open, which those with
 * free dimensions need: dimension d of input i is shapes[i * MPISERVE_MAX_DIMS + d]. With
 * MPISERVE_RAGGED those of each request: row r of the batch begins at shapes[r * n_inputs *
 * MPISERVE_MAX_DIMS], until mpiserve_batch_reply_rows(). Local; MPISERVE_ESTATE if no batch is
 * open.
 *
 * mpiserve_result_shapes_set: the shapes of the outputs, in the same form, that the following
 * replies for a service of this rank (0, 1, ...) have, to a batch or to tickets, until the next
 * batch of it. rows is 1: all rows have them; or with MPISERVE_RAGGED the number of rows, whose
 * shapes follow each other in the order of the batch; a reply to a ticket takes the first ones. A
 * first dimension that counts rows is not looked at. Without this call free dimensions are the
 * largest, for which batch->outputs[j] has room. Local. MPISERVE_ESHAPE: a shape does not fit the
 * signature, and nothing has changed. MPISERVE_EARG: another number of rows. */
int mpiserve_batch_shapes_get(mpiserve_session *session, int64_t *shapes);
int mpiserve_result_shapes_set(mpiserve_session *session, int service, int64_t rows,
                               const int64_t *shapes);

/* mpiserve_batch_reply: answer the batch. outputs[j] is [rows, ...] of output j, in any memory of
 * the caller's; batch->outputs[j] itself costs no copy. */
int mpiserve_batch_reply(mpiserve_session *session, const void *const *outputs);

/* mpiserve_batch_reply_rows: the first rows of the outputs are final: answer the requests that lie
 * within them, while the model goes on with the others. The caller may do so several times, with
 * more rows each time, before mpiserve_batch_reply(). */
int mpiserve_batch_reply_rows(mpiserve_session *session, int64_t rows, const void *const *outputs);

/* mpiserve_batch_fail: answer every request of the batch that has no answer yet with code, -1 to
 * -32768, and text. */
int mpiserve_batch_fail(mpiserve_session *session, int code, const char *text);

/* mpiserve_batch_clients: the world rank that submitted each row of the batch, in clients[0] to
 * clients[rows - 1]. Local; MPISERVE_ESTATE if no batch is open. */
int mpiserve_batch_clients(mpiserve_session *session, int32_t *clients);

/* mpiserve_change_get: the change that mpiserve_batch_next() returned MPISERVE_ECHANGE for. Local.
 * mpiserve_change_reply: answer it at any later time, with MPISERVE_OK when it is done, or a code
 * and a text. Batches go on meanwhile; during MPISERVE_SWAP and MPISERVE_UNLOAD the service forms
 * none until the answer, so that held requests can end first. The next change of this service
 * follows after that. A successful MPISERVE_SWAP begins a new generation, which all answers carry
 * from now on. A server that cannot change its model answers with MPISERVE_ESTATE.
 * Both: MPISERVE_ESTATE if there is no such change. */
int mpiserve_change_get(mpiserve_session *session, mpiserve_change_request *change);
int mpiserve_change_reply(mpiserve_session *session, int service, int code, const char *text);

/* mpiserve_batch_hold: end the batch without an answer and keep its requests. A ticket answers each
 * of them when it is ready, in any order, also while another batch is open. tickets has room for
 * batch->requests tickets, which the caller owns; id is 0 where mpiserve_batch_reply_rows() has
 * answered the request. Copy the batch's inputs first: they are valid no longer. While requests are
 * held, mpiserve_batch_next() returns what has come without waiting for more, so that it can join
 * them. Local. MPISERVE_ENOMEM: the batch stays open. */
int mpiserve_batch_hold(mpiserve_session *session, mpiserve_ticket *tickets);

/* mpiserve_ticket_wanted: does the client still wait for this request? wanted is 0 or 1. When 0,
 * the request was cancelled, or another simulation rank has failed: it has been answered, and
 * ticket becomes no ticket. The answer is as of the last mpiserve_batch_next() or mpiserve_poll().
 * Local. */
int mpiserve_ticket_wanted(mpiserve_session *session, mpiserve_ticket *ticket, int *wanted);

/* mpiserve_ticket_reply, mpiserve_ticket_fail: answer one held request. outputs[j] is
 * [ticket->rows, ...] of output j, in the caller's memory, and is copied. ticket becomes no ticket.
 * MPISERVE_ESTATE: the request has ended; see mpiserve_ticket_wanted(). Never wait. */
int mpiserve_ticket_reply(mpiserve_session *session, mpiserve_ticket *ticket,
                          const void *const *outputs);
int mpiserve_ticket_fail(mpiserve_session *session, mpiserve_ticket *ticket, int code,
                         const char *text);

/* mpiserve_segment_get: the memory of this rank in which all inputs and outputs lie that
 * mpiserve_batch_next() hands out. Another process of this user, which runs the model, maps its
 * file (MAP_SHARED): the file descriptor is sent to it, or opened at /proc/PID/fd/FD. It belongs to
 * the session and is valid until mpiserve_close(); a mapping of it may outlive that. Inference
 * ranks; local. MPISERVE_ESTATE before mpiserve_publish(). */
int mpiserve_segment_get(mpiserve_session *session, mpiserve_segment *segment);

/* mpiserve_segment_outputs: the parts of that memory in which outputs of a service of this rank
 * lie: the only ones that its model must write to. They are whole pages of 4096 bytes. Fills
 * ranges, which has room for MPISERVE_OUTPUT_RANGES, and n. Inference ranks; local.
 * MPISERVE_EARG: the rank does not serve it. */
int mpiserve_segment_outputs(mpiserve_session *session, const char *service, mpiserve_range *ranges,
                             int *n);

/* mpiserve_poll: take what clients send, and form no batch: for a server that holds as many
 * requests as it can. Inference ranks; never waits. MPISERVE_ESTATE while a batch is open. */
int mpiserve_poll(mpiserve_session *session);

/* mpiserve_suspend: suspend a service of this rank (0, 1, ...) here, or resume it: for ranks that
 * hold the models of some of their services only. Clients send their requests to it, those that
 * wait for a batch included, to another replica, and no user notices. Held requests must still be
 * answered. Clients try a suspended replica now and then, and so learn when it serves again. Let
 * another replica serve before the last one is suspended: requests go round among all of them
 * until one serves or their time is over. With no other replica they end with MPISERVE_EMODEL.
 *
 * suspended is 0 or 1; the state that it already has changes nothing. Inference ranks; never waits.
 * MPISERVE_ESTATE while a batch of it is open, MPISERVE_EARG if there is no such service. */
int mpiserve_suspend(mpiserve_session *session, int service, int suspended);

/* mpiserve_state_set: say in which state the replica of a service of this rank (0, 1, ...) is:
 * MPISERVE_LAUNCHED, _LOADING, _READY, _RESTARTING or _FAILED. It is what clients read, and changes
 * nothing else: a replica that restarts is suspended too, first. The library itself says
 * MPISERVE_READY or _FAILED after mpiserve_publish(), MPISERVE_BUSY, _SUSPENDED and _GONE, and
 * MPISERVE_READY when the service is resumed, or _LOADING if there is no room for requests then.
 * Inference ranks; local. MPISERVE_EARG if there is no such service, or for another state. */
int mpiserve_state_set(mpiserve_session *session, int service, int state);

/* mpiserve_rows_set: from the next batch on, the rows of a service of this rank (0, 1, ...) are
 * independent, or together (mpiserve_rows), because mpiserve_reload() brought a model of another
 * kind than the description said. mpiserve_service_describe() still gives what was published.
 * Inference ranks; local. MPISERVE_ESTATE while a batch of it is open, MPISERVE_EARG if there is no
 * such service or kind, or the service is one with MPISERVE_NO_ROWS or MPISERVE_RAGGED. */
int mpiserve_rows_set(mpiserve_session *session, int service, int rows);

/* mpiserve_room_set: has the model of a service of this rank (0, 1, ...) room for a batch? room is
 * 1 (as after mpiserve_publish()) or 0: for a rank that holds as many requests of this service as
 * its model can take. Without room mpiserve_batch_next() forms no batch of this service. Its
 * requests wait in the queue, where max_queue_rows, on_full, priorities, deadlines and
 * cancellations hold as ever; batches of other services, and changes of any, are not affected.
 * Requests wait until there is room, and so does mpiserve_close() of their ranks; suspend the
 * service, or give it room.
 * With no room at all it still takes what clients write, so that a time-out of 0 is a poll.
 * Inference ranks; local. MPISERVE_EARG if there is no such service. */
int mpiserve_room_set(mpiserve_session *session, int service, int room);

/* mpiserve_queue_get: the rows that wait here for a batch of a service of this rank, as far as
 * this rank has taken them. Inference ranks; local. MPISERVE_EARG if there is no such service. */
int mpiserve_queue_get(mpiserve_session *session, int service, int64_t *rows);

/* mpiserve_mpi_take, mpiserve_mpi_give: while a batch is open, or requests are held, MPI belongs to
 * the broker thread, and a model that calls MPI itself, among the ranks of its replica, does so
 * between these two. In pairs, from one thread at a time; not around calls of this library. At
 * other times they do nothing. Inference ranks; they wait for the thread's own short calls only.
 * MPISERVE_ESTATE before mpiserve_publish(). */
int mpiserve_mpi_take(mpiserve_session *session);
int mpiserve_mpi_give(mpiserve_session *session);

/* mpiserve_engine_load: make an engine for a description's tensors: of a shared library, which
 * dlopen() finds and which stays loaded until the process ends, because not every library can be
 * unloaded; or, if library is NULL, the engine of this library that copies each input to the output
 * of the same position (echo), which the description must allow. Any process may call it, before
 * mpiserve_open() too. Local. MPISERVE_EMODEL: the library has no engine for the model, with its
 * text.
 *
 * mpiserve_engine_close: free an engine, which no session uses any more; its state becomes NULL.
 * NULL, and an engine that is all zero, are allowed. Local. */
int mpiserve_engine_load(const char *library, const char *model,
                         const mpiserve_description *description, mpiserve_engine *engine);
void mpiserve_engine_close(mpiserve_engine *engine);

/* mpiserve_engine_set: from its next batch on, mpiserve_batch_next() runs the batches of a service
 * of this rank (0, 1, ...) in an engine and answers them itself, until its time-out: then it
 * returns MPISERVE_ETIMEOUT, though requests go on. So a caller that has other work says how often
 * it is called. NULL: the caller answers again. The engine is copied; its state must live until
 * another one is set, or the session is closed.
 *
 * When an engine fails, mpiserve_batch_next() returns MPISERVE_EMODEL with its text, and the batch,
 * which is open as after MPISERVE_OK: the caller runs it in another way, or fails it. Requests
 * whose rows came in a chunk before have their answer. With by_request only the request that failed
 * ends, with MPISERVE_EMODEL, and the call goes on. A service that keeps answers
 * (mpiserve_description.cache_rows) forgets them, and its engine never runs by request. Inference
 * ranks; local. MPISERVE_ESTATE while a batch of it is open, MPISERVE_EARG if there is no such
 * service, it has free dimensions, or the engine has no function run. */
int mpiserve_engine_set(mpiserve_session *session, int service, const mpiserve_engine *engine);

/* mpiserve_capture_set: from its next answer on, copy the requests to a service of this rank (0, 1,
 * ...) and their answers into a ring, before the client learns of the answer. It is copied here;
 * the ring is that of all services of the rank and must live until the session is closed. A full
 * ring costs rows, or time, as `waits` says; nobody waits for a reader that has died, has closed
 * the ring, or has taken nothing for 10 s. Requests that end with an error are not copied, nor rows
 * whose answers were kept (mpiserve_description.cache_rows). Of a
 * service that overwrites (mpiserve_description) the inputs may be gone by then: what is copied in
 * place of them are the outputs, which are the same only if the service returns its inputs. Time
 * steps are known if MPISERVE_CAPTURE was set at mpiserve_open() on any rank. NULL: copy nothing
 * any more. What clients record (mpiserve_record()) is copied in the same way, all of it, with
 * model 0. Inference ranks; local. MPISERVE_EARG: there is no such service, it has free
 * dimensions, or the ring is too small. */
int mpiserve_capture_set(mpiserve_session *session, int service, const mpiserve_capture *capture);

/* mpiserve_placement_set: say where the requests to a service of this rank (0, 1, ...) are
 * answered, of a service that has a local and a remote model. Nothing depends on it: `mpiserve top`
 * and `mpiserve metrics` show it. It is copied. Inference ranks; local. MPISERVE_EARG: there is no
 * such service, or side is none of these. */
int mpiserve_placement_set(mpiserve_session *session, int service,
                           const mpiserve_placement *placement);

/* mpiserve_peer_error: has a simulation rank ended with an error? rank is its world rank or -1;
 * remaining is the number of simulation ranks that have not left yet; text has room for
 * MPISERVE_TEXT_SIZE bytes. Local. */
int mpiserve_peer_error(mpiserve_session *session, int *rank, int *remaining, char *text);

/* mpiserve_wanted_get: does a simulation rank still want answers? wanted is 0 if all have left or
 * died, or if one has failed, also if this rank has not taken their words for it, as while a batch
 * is open; else 1. For a server that waits for a model which may never end: nothing that it does is
 * of use any more. Gateways and trainers are wanted for 5 s after the last simulation rank.
 * Inference ranks; never waits. */
int mpiserve_wanted_get(mpiserve_session *session, int *wanted);

/* mpiserve_irregular_get: how many rounds of a reproducible service (by its index) lacked a request
 * of a simulation rank that has not left, or lost one that was cancelled or late: the results of
 * these, and of what follows from them, depend on time. text, of MPISERVE_TEXT_SIZE bytes or NULL,
 * says of the last such event which ranks it was about, and why; "": there was none. Inference
 * ranks; local. */
int mpiserve_irregular_get(mpiserve_session *session, int service, int64_t *rounds, char *text);

/* mpiserve_crowded_get: how many batches of a service (by its index) have held one request although
 * others waited, which had no room in them, or had other free dimensions; 0 once a batch has held
 * several, and where rows are together. rows: the most that waited at once then. Inference ranks;
 * local. */
int mpiserve_crowded_get(mpiserve_session *session, int service, int64_t *batches, int64_t *rows);

/* mpiserve_waiting_get: has nothing come from any simulation rank for MPISERVE_WAIT_NOTICE seconds
 * (environment, read when the services are published; default 10; 0: never)? why is an
 * mpiserve_waits. text, of MPISERVE_TEXT_SIZE bytes or NULL, names by world rank the ranks that
 * this one waits for, and says what may have happened; "" if it does not wait. Call it now and then
 * when mpiserve_batch_next() has given no batch. Inference ranks; local. */
int mpiserve_waiting_get(mpiserve_session *session, int *why, char *text);

#ifdef __cplusplus
}
#endif
#endif
