/* slot: what lies where in a head's memory. docs/internals/protocol.md says the same in
 * words; both sides compute it from the published description. No MPI calls.
 *
 *   [header] [doorbells: a byte per lane] [lanes: slots] [input slabs] [output slabs]
 *
 * The sections of a rank that serves several services follow each other. A lane
 * belongs to one simulation rank. Its request n (1, 2, ...) uses slot (n - 1) % slots. */
#ifndef MSI_SLOT_H
#define MSI_SLOT_H

#include <stdatomic.h>

#include "base/profile.h"
#include "protocol/tensor.h"

enum {
  MSI_SLOTS = 4,   /* requests in flight per lane */
  MSI_BUFFERS = 8, /* leases per lane that users hold as buffers */
  MSI_LEASES = MSI_SLOTS + MSI_BUFFERS,
  MSI_EAGER_BYTES = 408, /* of payload in a slot, each way; also the room for texts */
  MSI_ALIGN = 64,        /* a cache line */
  MSI_PAGE = 4096        /* what a model writes to shares none with anything else */
};

/* What a request asks for. */
typedef enum msi_kind {
  MSI_ATTACH = 1, /* this client will use the service: count it in the census */
  MSI_LEASE = 2,  /* rows of the slabs, kept until replaced or taken back */
  MSI_INFER = 3,
  MSI_FAIL = 4,    /* the client ended with an error; its text is the payload */
  MSI_LEAVE = 5,   /* the last request of a client */
  MSI_KEEP = 6,    /* a lease that the client keeps as long as it likes: never lent, or none */
  MSI_VISIT = 7,   /* as MSI_INFER, of a client that counts in the census of another replica */
  MSI_DEPART = 8,  /* this client asks another replica now: do not wait for it */
  MSI_CHANGE = 9,  /* another model: lease says what (mpiserve_change), the payload is a version */
  MSI_PIECE = 10,  /* as MSI_VISIT, of some rows of a request: refused where rows belong together */
  MSI_RECORD = 11, /* rows with their outputs, which the client has from elsewhere, for a capture */
  MSI_LAST_PIECE = 12 /* as MSI_PIECE, of the last rows */
} msi_kind;

/* Is it for the model? */
static inline int msi_kind_infers(int kind) {
  return kind == MSI_INFER || kind == MSI_VISIT || kind == MSI_PIECE || kind == MSI_LAST_PIECE;
}

/* The code of a reply to MSI_INFER that does not end the request: the service is suspended at this
 * head, and the client sends the request to another replica. Users never see it. */
enum { MSI_SUSPENDED = 1 };

/* The bits of `cancelled`. The last two are of the client, which sets them beside its last request
 * where it has no slot for MSI_LEAVE or MSI_FAIL, and sends nothing any more. */
enum { MSI_CANCELLED = 1, MSI_HAS_LEFT = 2, MSI_HAS_FAILED = 4, MSI_MARKS = 7 };

/* In a header that was read, and not only said to be. */
#define MSI_MAGIC UINT32_C(0x6d736967)

/* What the head writes. Clients read the first cache line of a rank's first section with every
 * request, the second one when they have waited for long, and the third one when they ask for the
 * state of the service. */
typedef struct msi_section_header {
  _Atomic uint32_t asleep; /* The head sets 1 before it sleeps; the head, or the client that wakes
                              it, sets 0. In the first section of a rank only */
  uint32_t magic;          /* MSI_MAGIC */
  uint32_t unused[14];
  _Atomic int64_t busy_ns;   /* since when the head runs a batch, by the node's clock; 0: it does
                                not. In the first section only */
  _Atomic int64_t looked_ns; /* when the head, which had nothing to do, looked for requests; as
                                above */
  _Atomic int64_t waits_ns;  /* the same, for as long as the head waits for requests; else 0; as
                                above */
  uint32_t unused_too[10];
  _Atomic int64_t entered_ns[MPISERVE_STATES]; /* by mpiserve_state, as in mpiserve_replica_state */
} msi_section_header;

/* The client writes it before it rings the doorbell, and `cancelled` and `asleep` also later. */
typedef struct msi_request_header {
  uint64_t sequence; /* n: guards against a lane out of step */
  uint8_t kind;
  int8_t priority;
  int8_t lease;        /* the lease of the lane that holds the inputs; -1: they are in the slot */
  int8_t output_lease; /* the same for the outputs */
  uint32_t rows;       /* or the bytes of a text */
  int64_t deadline_ns; /* 0: none; shared: by the node's clock; rma: from now on */
  uint32_t row, output_row; /* of the leases: the first ones used */
  _Atomic uint32_t cancelled;
  _Atomic uint32_t
      asleep; /* the client sets 1 before it sleeps; it, or the head that wakes it, sets 0 */
} msi_request_header;

/* Written by the head; sequence last. */
typedef struct msi_reply_header {
  _Atomic uint64_t sequence; /* n: the reply to request n is complete */
  int16_t code;
  uint16_t generation; /* reply to MSI_INFER: of the model */
  uint32_t rows;       /* of the batch, of the lease, or those that are captured */
  uint32_t requests;   /* of the batch */
  union {
    uint32_t text_bytes;   /* of an error */
    uint32_t waiting_rows; /* reply to MSI_INFER: of all clients, left in the queue */
  };
  union {
    struct {
      int64_t queue_ns, compute_ns; /* reply to MSI_INFER */
    };
    struct {
      uint32_t lease_begin; /* reply to MSI_LEASE, MSI_KEEP */
      uint32_t lease_once;  /* to be given back after one request */
    };
  };
} msi_reply_header;

/* Payload follows its header without a gap, so that the smallest ones share its cache
 * line: one line less for the other side to wait for. */
typedef struct msi_slot {
  msi_request_header request;
  uint8_t input[MSI_EAGER_BYTES];
  msi_reply_header reply; /* with output one piece: over RMA it is one message */
  uint8_t output[MSI_EAGER_BYTES];
} msi_slot;

/* The times of a request at its head, before its outputs, in a session that is profiled. With the
 * header of the reply, which has the rest, they fill a cache line: one that the head writes and the
 * client waits for anyway. Another line took 0.1 us more. */
typedef struct msi_reply_times {
  int64_t taken_ns, free_ns;
  float gather_ns, reply_ns; /* from closed to gathered, and from computed to replied */
} msi_reply_times;

/* Where the end of a slot's input holds the time step of the client, of a session that is captured.
 * Its inputs have less room there. */
enum { MSI_STEP_AT = MSI_EAGER_BYTES - sizeof(int64_t) };

_Static_assert(offsetof(msi_request_header, cancelled) % sizeof(uint64_t) == 0, "whole words");
_Static_assert(offsetof(msi_section_header, entered_ns) == 2 * MSI_ALIGN, "lines of their own");
_Static_assert(sizeof(msi_section_header) == 3 * MSI_ALIGN, "three cache lines");
_Static_assert(sizeof(msi_request_header) + MSI_EAGER_BYTES == 7 * MSI_ALIGN, "one writer a line");
_Static_assert(sizeof(msi_reply_header) + MSI_EAGER_BYTES == 7 * MSI_ALIGN, "one writer a line");
_Static_assert(sizeof(msi_reply_header) + sizeof(msi_reply_times) == MSI_ALIGN, "one cache line");
_Static_assert(sizeof(msi_slot) * MSI_SLOTS <= 4096, "a silent client costs less than a page");

typedef struct msi_layout {
  msi_side inputs, outputs;
  uint32_t lanes;
  uint32_t slab_rows;
  int64_t max_rows;                         /* of a request */
  int64_t max_plain_rows;                   /* the same; 0 where there are free dimensions */
  int64_t batch_rows;                       /* of a batch; more than of a request if is_ragged */
  int is_free;                              /* are there? */
  int is_ragged;                            /* and may those of a batch differ? */
  size_t header_at, doorbells_at, lanes_at; /* in the rank's memory, as all that ends in _at */
  size_t inputs_at[MPISERVE_MAX_TENSORS], outputs_at[MPISERVE_MAX_TENSORS];
  size_t bytes; /* of the whole section, in whole pages: outputs are its last part */
} msi_layout;

/* Computes the layout for a number of lanes; 0 lanes take no memory. The slabs
 * hold twice what all slots of all lanes can ask for (leases are kept in the
 * lower half), or as many rows as fit into the description's pool_bytes, but at
 * least two full batches. The outputs of a service that overwrites its inputs lie in
 * their slabs. description must outlive the layout. */
int msi_layout_init(msi_layout *layout, const mpiserve_description *description, uint32_t lanes);

/* The rows of the slabs where pool_bytes allows them. */
uint64_t msi_layout_most_rows(const msi_layout *layout);

/* Lays so many rows of each tensor of a side out, one after the other from at on: fills offsets and
 * returns the end. */
size_t msi_side_lay_out(const msi_side *side, uint32_t rows, size_t at, size_t *offsets);

/* Leaves room for the times of requests, or for the steps of clients, as every rank of a session
 * does that is profiled, or captured. */
static inline void msi_layout_leave_room(msi_layout *layout, int measured, int captured) {
  if (captured) layout->inputs.slot_bytes = MSI_STEP_AT;
  if (!measured) return;
  layout->outputs.slot_at = sizeof(msi_reply_times);
  layout->outputs.slot_bytes = MSI_EAGER_BYTES - sizeof(msi_reply_times);
}

/* Rounds up to whole pages. */
static inline size_t msi_pages(size_t bytes) {
  return (bytes + MSI_PAGE - 1) / MSI_PAGE * MSI_PAGE;
}

/* Moves the section to where it begins in the memory of its rank, at a page; it began at 0. */
void msi_layout_move(msi_layout *layout, size_t at);

/* Do this many rows of one side fit into the slot? */
int msi_side_eager(const msi_side *side, int64_t rows);

static inline size_t msi_slot_at(const msi_layout *layout, uint32_t lane, uint64_t sequence) {
  return layout->lanes_at +
         (lane * (size_t)MSI_SLOTS + (sequence - 1) % MSI_SLOTS) * sizeof(msi_slot);
}

/* Where the outputs of a request begin in its slot. */
static inline uint8_t *msi_slot_outputs(const msi_layout *layout, msi_slot *slot) {
  return slot->output + layout->outputs.slot_at;
}

/* Have tensors free dimensions? Then a slot has those of its side before the payload. */
static inline int msi_layout_is_free(const msi_layout *layout) { return layout->is_free; }

/* Has the client cancelled the request? Pairs with its release. */
static inline int msi_slot_cancelled(const msi_slot *slot) {
  return atomic_load_explicit(&slot->request.cancelled, memory_order_acquire) != 0;
}

/* What has it marked there? Pairs with its release. Other words than those of a client that keeps
 * to the rules only cancel. */
static inline uint32_t msi_slot_marks(const msi_slot *slot) {
  uint32_t marks = atomic_load_explicit(&slot->request.cancelled, memory_order_acquire);
  return marks & ~(uint32_t)MSI_MARKS ? MSI_CANCELLED : marks;
}

/* The state that was entered last; ready is busy while there is a time of that. */
int msi_state_of(const int64_t *entered_ns);

/* The half of a sequence number that a futex can wait for. */
static inline _Atomic uint32_t *msi_low_half(_Atomic uint64_t *sequence) {
  const uint64_t one = 1;
  return (_Atomic uint32_t *)sequence + (*(const uint8_t *)&one ? 0 : 1);
}

/* Like memcpy; what is too large for the caches goes past them. Complete for other
 * ranks as soon as a release store has followed. */
void msi_copy(void *to, const void *from, size_t bytes);

/* Copy tensors between their own addresses and one packed run of bytes, in the
 * order of the signature. */
void msi_side_pack(const msi_side *side, int64_t rows, uint8_t *to, void *const *from);
void msi_side_unpack(const msi_side *side, int64_t rows, void *const *to, const uint8_t *from);

#endif
