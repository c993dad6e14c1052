#define _GNU_SOURCE
#include "client/endpoint.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "mpi/failure.h"

enum { QUICK_BYTES = 2048 }; /* copied in some 40 ns; a look at the clock takes 25 */
static const int64_t LONGEST_READ_NS =
    2000000000; /* of states, from a head that may have stopped */

/* Our lane is our rank among the clients that reach this head in this way. */
static uint32_t lane_of(const msi_world *world, int head, int transport, int rank) {
  uint32_t lane = 0;
  for (int r = 0; r < rank; r++)
    lane += msi_world_is_client(world, r) && msi_window_transport(world, r, head) == transport;
  return lane;
}

/* The sections of a rank follow each other, in the order of its services. */
static int find_section(msi_endpoint *endpoint, const msi_head *head, uint32_t lanes,
                        const msi_world *world) {
  size_t at = 0;
  int code = MPISERVE_OK;
  for (const msi_head *h = head - head->service_index; h <= head && !code; h++) {
    at += endpoint->layout.bytes;
    code = msi_layout_init(&endpoint->layout, &h->description, lanes);
  }
  msi_layout_move(&endpoint->layout, at);
  msi_layout_leave_room(&endpoint->layout, world->measured, world->captured);
  return code;
}

static int allocate_given(msi_endpoint *endpoint) {
  endpoint->given = calloc(2, sizeof *endpoint->given);
  if (!endpoint->given) return msi_error(MPISERVE_ENOMEM, "no memory for shapes");
  endpoint->layout.inputs.given = &endpoint->given[0];
  endpoint->layout.outputs.given = &endpoint->given[1];
  endpoint->layout.inputs.n_plain = endpoint->layout.outputs.n_plain = -1; /* note all shapes */
  return MPISERVE_OK;
}

int msi_endpoint_open(msi_endpoint *endpoint, msi_window *window, const msi_head *head) {
  const msi_world *world = window->world;
  int number = msi_window_transport(world, world->rank, head->rank);
  uint32_t lane = lane_of(world, head->rank, number, world->rank);
  uint32_t lanes = lane_of(world, head->rank, number, world->size);
  *endpoint = (msi_endpoint){0};
  int code = find_section(endpoint, head, lanes, world);
  if (!code && msi_layout_is_free(&endpoint->layout)) code = allocate_given(endpoint);
  if (code) return code;
  endpoint->path = (msi_path){.transport = msi_transport_at(number),
                              .window = window,
                              .head = head->rank,
                              .service_index = head->service_index,
                              .doorbell_at = endpoint->layout.doorbells_at + lane,
                              .slots_at = msi_slot_at(&endpoint->layout, lane, 1)};
  if (world->captured) endpoint->path.transport = msi_transport_with_step(number);
  return endpoint->path.transport->open(&endpoint->path);
}

/* Buffers that were not given back stay readable: somebody may look at them. */
void msi_endpoint_close(msi_endpoint *endpoint) {
  int held = 0;
  free(endpoint->given);
  for (int i = MSI_SLOTS; i < MSI_LEASES; i++) held += msi_endpoint_holds(endpoint, i);
  if (held) msi_window_keep(endpoint->path.window, endpoint->path.head);
  if (endpoint->path.transport && endpoint->path.transport->close)
    endpoint->path.transport->close(&endpoint->path);
}

void msi_endpoint_forget(msi_endpoint *endpoint) {
  if (endpoint->path.transport->forget) endpoint->path.transport->forget(&endpoint->path);
  endpoint->fetching = 0;
}

static int end_reading(msi_endpoint *endpoint) {
  msi_path *path = &endpoint->path;
  int64_t deadline = msi_now() + LONGEST_READ_NS;
  int code;
  do code = path->transport->read_end(path);
  while (code == MSI_NOT_YET && msi_now() < deadline);
  if (code == MPISERVE_OK) return code;
  msi_endpoint_forget(endpoint); /* also the rows of a reply that were on their way with it */
  if (code != MSI_NOT_YET) return code;
  return msi_error(MPISERVE_ETIMEOUT, "inference rank %d has not said for 2 s in which state it is",
                   path->head);
}

int msi_endpoint_states(msi_endpoint *endpoint, int64_t *entered_ns) {
  msi_path *path = &endpoint->path;
  size_t at = endpoint->layout.header_at + offsetof(msi_section_header, entered_ns);
  if (path->transport->same_node) {
    const _Atomic int64_t *times = (const _Atomic int64_t *)(path->memory + at);
    for (int i = 0; i < MPISERVE_STATES; i++)
      entered_ns[i] = atomic_load_explicit(&times[i], memory_order_relaxed);
    return MPISERVE_OK;
  }
  int code = path->transport->read(path, at, entered_ns, MPISERVE_STATES * sizeof *entered_ns);
  return code ? code : end_reading(endpoint);
}

int msi_endpoint_serves(msi_endpoint *endpoint) {
  int64_t entered_ns[MPISERVE_STATES];
  if (endpoint->lost || endpoint->stopped || msi_endpoint_states(endpoint, entered_ns)) return 0;
  int state = msi_state_of(entered_ns);
  return state == MPISERVE_READY || state == MPISERVE_BUSY;
}

/* ---- slots ----------------------------------------------------------------------- */

int msi_endpoint_can_send(const msi_endpoint *endpoint) {
  return !endpoint->taken[endpoint->sent % MSI_SLOTS];
}

static double seconds_since(int64_t ns) { return (double)(msi_now() - ns) * 1e-9; }

int msi_endpoint_lost(const msi_endpoint *endpoint) {
  char text[MPISERVE_TEXT_SIZE] = "";
  const msi_world *world = endpoint->path.window->world;
  int head = endpoint->path.head;
  msi_failure_name(world, head, text, sizeof text);
  if (!endpoint->stopped) return msi_error(MPISERVE_EPEER, "%s has died", text);
  msi_peer_state state = msi_failure_state_of(world, head);
  const char *what = state == MSI_PEER_STOPPED ? "has been stopped by a signal"
                     : state == MSI_PEER_STUCK ? "has been stuck in the kernel"
                                               : "has shown no sign of life";
  return msi_error(MPISERVE_EPEER, "%s %s for %.1f s", text, what,
                   seconds_since(endpoint->silent_ns));
}

/* Over rma nobody can look into the memory of a head that may not answer. */
int64_t msi_endpoint_waits(const msi_endpoint *endpoint) {
  const msi_section_header *header = (const msi_section_header *)endpoint->path.memory;
  return header ? atomic_load_explicit(&header->waits_ns, memory_order_relaxed) : 0;
}

static void append_doing(const msi_endpoint *endpoint, char *text, size_t bytes) {
  const msi_section_header *header = (const msi_section_header *)endpoint->path.memory;
  if (!header) return;
  int64_t busy_ns = atomic_load_explicit(&header->busy_ns, memory_order_relaxed);
  int64_t looked_ns = atomic_load_explicit(&header->looked_ns, memory_order_relaxed);
  if (busy_ns)
    msi_text_append(text, bytes, "; it has been running a batch for %.1f s",
                    seconds_since(busy_ns));
  else if (looked_ns)
    msi_text_append(text, bytes, "; it looked for requests %.1f s ago", seconds_since(looked_ns));
}

void msi_endpoint_why(const msi_endpoint *endpoint, char *text, size_t bytes) {
  static const char *const STATES[] = {"no reply", "alive", "stopped by a signal", "dead",
                                       "stuck in the kernel"};
  const msi_world *world = endpoint->path.window->world;
  msi_failure_name(world, endpoint->path.head, text, bytes);
  msi_text_append(text, bytes, ": %s", STATES[msi_failure_state_of(world, endpoint->path.head)]);
  append_doing(endpoint, text, bytes);
}

static inline __attribute__((always_inline)) int post(msi_endpoint *endpoint, size_t payload_bytes,
                                                      void *owner) {
  int at = (int)(endpoint->sent % MSI_SLOTS);
  if (endpoint->lost) return msi_endpoint_lost(endpoint);
  int code = endpoint->path.transport->post(&endpoint->path, endpoint->sent + 1, payload_bytes);
  if (code) return code;
  endpoint->sent++;
  endpoint->taken[at] = 1;
  endpoint->owners[at] = owner;
  endpoint->in_flight++;
  return MPISERVE_OK;
}

static msi_slot *fill(msi_endpoint *endpoint, msi_kind kind, int64_t rows, int lease) {
  msi_slot *slot = &endpoint->path.slots[endpoint->sent % MSI_SLOTS];
  slot->request.sequence = endpoint->sent + 1;
  slot->request.kind = (uint8_t)kind;
  slot->request.rows = (uint32_t)rows;
  slot->request.lease = (int8_t)lease;
  atomic_store_explicit(&slot->request.cancelled, 0, memory_order_relaxed);
  return slot;
}

int msi_endpoint_send(msi_endpoint *endpoint, msi_kind kind, int64_t rows, int lease,
                      const char *text, void *owner) {
  msi_slot *slot = fill(endpoint, kind, rows, lease);
  size_t bytes = text ? msi_text_bytes(text, MSI_EAGER_BYTES) : 0;
  if (bytes) memcpy(slot->input, text, bytes);
  if (bytes) slot->request.rows = (uint32_t)bytes;
  return post(endpoint, bytes, owner);
}

/* Of the word this rank is the only writer. The release puts it behind the doorbell. */
static int set_marks(msi_endpoint *endpoint, uint64_t sequence, uint32_t marks) {
  const msi_transport *transport = endpoint->path.transport;
  _Atomic uint32_t *word = &endpoint->path.slots[(sequence - 1) % MSI_SLOTS].request.cancelled;
  marks |= atomic_load_explicit(word, memory_order_relaxed);
  atomic_store_explicit(word, marks, memory_order_release);
  return transport->cancel ? transport->cancel(&endpoint->path, sequence) : MPISERVE_OK;
}

int msi_endpoint_cancel(msi_endpoint *endpoint, uint64_t sequence) {
  if (endpoint->fetching) msi_endpoint_forget(endpoint); /* the caller uses its tensors again */
  return set_marks(endpoint, sequence, MSI_CANCELLED);
}

int msi_endpoint_mark(msi_endpoint *endpoint, uint32_t mark) {
  return set_marks(endpoint, endpoint->sent, mark);
}

int msi_endpoint_reply(msi_endpoint *endpoint) {
  for (int i = 0; i < MSI_SLOTS; i++) {
    int at = (int)((endpoint->sent + (uint64_t)i) % MSI_SLOTS);
    if (!endpoint->taken[at]) continue;
    msi_slot *slot = &endpoint->path.slots[at];
    /* Pairs with the head's release of the reply: rows and code are complete. */
    if (atomic_load_explicit(&slot->reply.sequence, memory_order_acquire) == slot->request.sequence)
      return at;
  }
  return -1;
}

int msi_endpoint_wait_address(msi_endpoint *endpoint, uint64_t sequence,
                              msi_wait_address *address) {
  if (!endpoint->path.transport->same_node) return 0;
  msi_slot *slot = &endpoint->path.slots[(sequence - 1) % MSI_SLOTS];
  *address = (msi_wait_address){msi_low_half(&slot->reply.sequence), &slot->request.asleep,
                                (uint32_t)sequence, 1, 0};
  return 1;
}

void msi_endpoint_release(msi_endpoint *endpoint, int slot) {
  endpoint->taken[slot] = 0;
  endpoint->in_flight--;
}

/* ---- rows -------------------------------------------------------------------------- */

int msi_endpoint_find_lease(const msi_endpoint *endpoint, int64_t rows) {
  for (int i = 0; i < MSI_SLOTS; i++)
    if (!endpoint->leases[i].users && !endpoint->leases[i].stale &&
        endpoint->leases[i].rows >= rows)
      return i;
  return -1;
}

int msi_endpoint_spare_lease(const msi_endpoint *endpoint) {
  for (int i = 0; i < MSI_SLOTS; i++)
    if (!endpoint->leases[i].users && !endpoint->leases[i].stale) return i;
  return -1;
}

static size_t slab_at(const msi_endpoint *endpoint, int outputs, int i, uint32_t row) {
  const msi_side *side = outputs ? &endpoint->layout.outputs : &endpoint->layout.inputs;
  const size_t *slabs = outputs ? endpoint->layout.outputs_at : endpoint->layout.inputs_at;
  return slabs[i] + row * side->row_bytes[i];
}

static uint32_t first_row(const msi_endpoint *endpoint, const msi_location *location) {
  return endpoint->leases[location->lease].begin + location->row;
}

static int write_slabs(msi_endpoint *endpoint, const msi_payload *payload, const msi_side *side) {
  msi_path *path = &endpoint->path;
  int code = MPISERVE_OK;
  for (int i = 0; i < side->n && !code && !payload->input.in_place; i++)
    code =
        path->transport->write(path, slab_at(endpoint, 0, i, first_row(endpoint, &payload->input)),
                               payload->inputs[i], (size_t)payload->rows * side->row_bytes[i]);
  return code;
}

static int begin_reading(msi_endpoint *endpoint, const msi_payload *payload, const msi_side *side) {
  msi_path *path = &endpoint->path;
  int code = MPISERVE_OK;
  for (int i = 0; i < side->n && !code; i++)
    code =
        path->transport->read(path, slab_at(endpoint, 1, i, first_row(endpoint, &payload->output)),
                              payload->outputs[i], (size_t)payload->rows * side->row_bytes[i]);
  return code;
}

/* A slot whose rows have not arrived yet is looked at again, unless an older one gets its reply. */
static int read_slabs(msi_endpoint *endpoint, int slot, const msi_payload *payload,
                      const msi_side *side) {
  if (payload->output.in_place) return MPISERVE_OK;
  int code = endpoint->fetching == slot + 1 ? MPISERVE_OK : begin_reading(endpoint, payload, side);
  if (!endpoint->path.transport->read_end) return code;
  if (!code) code = endpoint->path.transport->read_end(&endpoint->path);
  endpoint->fetching = code == MSI_NOT_YET ? slot + 1 : 0;
  if (code && !endpoint->fetching) msi_endpoint_forget(endpoint);
  return code;
}

int msi_endpoint_is_quick(const msi_endpoint *endpoint, const msi_location *at,
                          const msi_side *side, int64_t rows) {
  if (at->lease < 0 || at->in_place) return 1;
  size_t bytes = (size_t)rows * side->total_row_bytes;
  return endpoint->path.transport->same_node && bytes <= QUICK_BYTES;
}

static void note_written(msi_endpoint *endpoint, const msi_payload *payload, const msi_side *side) {
  int is_quick = msi_endpoint_is_quick(endpoint, &payload->input, side, payload->rows);
  endpoint->written_ns = is_quick ? 0 : msi_now();
}

/* The free dimensions, and then the inputs. Not inlined: others would save registers for it. */
__attribute__((noinline)) static int send_with_dims(msi_endpoint *endpoint, msi_slot *slot,
                                                    const msi_payload *payload, void *owner) {
  const msi_side *side = &payload->shapes->inputs;
  const uint32_t *dims = payload->shapes->input_dims;
  size_t bytes = side->dims_bytes;
  int code = MPISERVE_OK;
  memcpy(slot->input, dims, (size_t)side->n_free * sizeof *dims);
  if (payload->input.lease >= 0) {
    code = write_slabs(endpoint, payload, side);
    if (MSI_PROFILED) note_written(endpoint, payload, side);
  } else {
    msi_side_pack(side, payload->rows, slot->input + bytes, payload->inputs);
    bytes += (size_t)payload->rows * side->total_row_bytes;
  }
  return code ? code : post(endpoint, bytes, owner);
}

int msi_endpoint_infer(msi_endpoint *endpoint, msi_kind kind, const msi_payload *payload,
                       void *owner, uint64_t *sequence) {
  msi_slot *slot = fill(endpoint, kind, payload->rows, payload->input.lease);
  slot->request.row = payload->input.row;
  slot->request.priority = payload->priority;
  slot->request.deadline_ns = payload->deadline_ns;
  if (payload->deadline_ns &&
      !endpoint->path.transport->same_node) /* hosts have clocks of their own */
    slot->request.deadline_ns -= msi_now();
  slot->request.output_lease = (int8_t)payload->output.lease;
  slot->request.output_row = payload->output.row;
  const msi_side *side = &endpoint->layout.inputs;
  size_t bytes = 0;
  int code = MPISERVE_OK;
  if (msi_layout_is_free(&endpoint->layout)) {
    const msi_payload copy = *payload; /* a caller's own does not escape, and so stays constant */
    code = send_with_dims(endpoint, slot, &copy, owner);
  } else if (payload->input.lease < 0) {
    msi_side_pack(side, payload->rows, slot->input, payload->inputs);
    bytes = (size_t)payload->rows * side->total_row_bytes;
    code = post(endpoint, bytes, owner);
  } else {
    code = write_slabs(endpoint, payload, side);
    if (MSI_PROFILED) note_written(endpoint, payload, side);
    if (!code) code = post(endpoint, 0, owner);
  }
  *sequence = endpoint->sent;
  return code;
}

int msi_endpoint_outputs(msi_endpoint *endpoint, int slot, const msi_payload *payload,
                         const msi_side *side) {
  if (payload->output.lease >= 0) return read_slabs(endpoint, slot, payload, side);
  const uint8_t *begin = msi_slot_outputs(&endpoint->layout, &endpoint->path.slots[slot]);
  msi_side_unpack(side, payload->rows, payload->outputs, begin + side->dims_bytes);
  return MPISERVE_OK;
}

/* ---- buffers ------------------------------------------------------------------------- */

static void *buffer_at(const msi_endpoint *endpoint, int outputs, int i, uint32_t row) {
  return endpoint->path.memory + slab_at(endpoint, outputs, i, row);
}

int msi_endpoint_holds(const msi_endpoint *endpoint, int at) {
  const msi_lease *lease = &endpoint->leases[at];
  return lease->rows && !lease->once && !lease->stale;
}

int msi_endpoint_find_location(const msi_endpoint *endpoint, int outputs, int64_t rows,
                               void *const *data, msi_location *location) {
  const msi_side *side = outputs ? &endpoint->layout.outputs : &endpoint->layout.inputs;
  /* Unsigned: an address before the memory is far behind it. */
  uintptr_t into = (uintptr_t)data[0] - (uintptr_t)endpoint->path.memory;
  if (!endpoint->path.memory || into >= endpoint->layout.header_at + endpoint->layout.bytes)
    return 0;
  for (int b = MSI_SLOTS; b < MSI_LEASES; b++) {
    const msi_lease *lease = &endpoint->leases[b];
    uintptr_t from = (uintptr_t)data[0] - (uintptr_t)buffer_at(endpoint, outputs, 0, lease->begin);
    uintptr_t row = from / side->row_bytes[0];
    if (!msi_endpoint_holds(endpoint, b) || row >= lease->rows ||
        (uint64_t)rows > lease->rows - row)
      continue;
    int i = 0, n = msi_side_seen(side);
    while (i < n && data[i] == buffer_at(endpoint, outputs, i, lease->begin + (uint32_t)row)) i++;
    if (i < n) return 0;
    *location = (msi_location){b, (uint32_t)row, 1};
    return 1;
  }
  return 0;
}

void msi_endpoint_find_hidden(const msi_endpoint *endpoint, const msi_location *location,
                              void **outputs) {
  const msi_side *side = &endpoint->layout.outputs;
  for (int i = msi_side_seen(side); i < side->n; i++)
    outputs[i] = buffer_at(endpoint, 1, i, first_row(endpoint, location));
}

int msi_endpoint_is_in_buffer(const msi_endpoint *endpoint, int at, const void *tensor) {
  const msi_layout *layout = &endpoint->layout;
  const msi_lease *lease = &endpoint->leases[at];
  for (int i = 0; i < layout->inputs.n + layout->outputs.n; i++) {
    int outputs = i >= layout->inputs.n, j = outputs ? i - layout->inputs.n : i;
    const msi_side *side = outputs ? &layout->outputs : &layout->inputs;
    /* Unsigned, as above. */
    uintptr_t into = (uintptr_t)tensor - (uintptr_t)buffer_at(endpoint, outputs, j, lease->begin);
    if (into < lease->rows * side->row_bytes[j]) return 1;
  }
  return 0;
}

static int allocate_own(msi_endpoint *endpoint, int at, mpiserve_buffer *buffer) {
  const msi_side *in = &endpoint->layout.inputs, *out = &endpoint->layout.outputs;
  size_t bytes[2 * MPISERVE_MAX_TENSORS], total = 0;
  for (int i = 0; i < in->n + out->n; i++) {
    size_t row = i < in->n ? in->row_bytes[i] : out->row_bytes[i - in->n];
    bytes[i] = ((size_t)buffer->rows * row + MSI_ALIGN - 1) / MSI_ALIGN * MSI_ALIGN;
    total += bytes[i];
  }
  uint8_t *memory = aligned_alloc(MSI_ALIGN, total);
  if (!memory) return msi_error(MPISERVE_ENOMEM, "no memory for a buffer of %zu bytes", total);
  endpoint->own[at - MSI_SLOTS] = memory;
  for (int i = 0; i < in->n + out->n; memory += bytes[i++])
    *(i < in->n ? &buffer->inputs[i] : &buffer->outputs[i - in->n]) = memory;
  return MPISERVE_OK;
}

int msi_endpoint_map_buffer(msi_endpoint *endpoint, int at, mpiserve_buffer *buffer) {
  if (!endpoint->path.transport->same_node) return allocate_own(endpoint, at, buffer);
  for (int i = 0; i < endpoint->layout.inputs.n; i++)
    buffer->inputs[i] = buffer_at(endpoint, 0, i, endpoint->leases[at].begin);
  for (int i = 0; i < endpoint->layout.outputs.n; i++)
    buffer->outputs[i] = buffer_at(endpoint, 1, i, endpoint->leases[at].begin);
  return MPISERVE_OK;
}

void msi_endpoint_free_buffer(msi_endpoint *endpoint, int at) {
  free(endpoint->own[at - MSI_SLOTS]);
  endpoint->own[at - MSI_SLOTS] = NULL;
}
