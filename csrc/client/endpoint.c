#define _GNU_SOURCE
#include "client/endpoint.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

enum { MESSAGE_BYTES = sizeof(msi_reply_header) + MSI_EAGER_BYTES };

/* Our lane is our rank among the clients that reach this head in this way. */
static uint32_t lane_of(const msi_world *world, int head, int transport, int rank) {
  uint32_t lane = 0;
  for (int r = 0; r < rank; r++)
    lane +=
        world->roles[r] == MPISERVE_SIMULATION && msi_window_transport(world, r, head) == transport;
  return lane;
}

/* The segments of a rank follow each other, in the order of its services. */
static int find_segment(msi_link *link, const msi_head *head, uint32_t lanes) {
  size_t at = 0;
  int code = MPISERVE_OK;
  for (const msi_head *h = head - head->place; h <= head && !code; h++) {
    at += link->layout.bytes;
    code = msi_layout_init(&link->layout, &h->description, lanes);
  }
  msi_layout_move(&link->layout, at);
  return code;
}

/* Where the segment ends in the memory of its rank. */
static size_t reach(const msi_link *link) { return link->layout.front_at + link->layout.bytes; }

int msi_link_open(msi_link *link, msi_window *window, const msi_head *head) {
  const msi_world *world = window->world;
  *link = (msi_link){.window = window,
                     .head = head->rank,
                     .place = head->place,
                     .transport = msi_window_transport(world, world->rank, head->rank)};
  link->lane = lane_of(world, head->rank, link->transport, world->rank);
  uint32_t lanes = lane_of(world, head->rank, link->transport, world->size);
  int code = find_segment(link, head, lanes);
  if (code) return code;
  link->heard = MPI_REQUEST_NULL;
  if (link->transport == MPISERVE_RMA) {
    link->slots = calloc(MSI_SLOTS, sizeof *link->slots);
    link->mailbox = malloc(MESSAGE_BYTES);
    if (link->slots && link->mailbox) return MPISERVE_OK;
    return msi_error(MPISERVE_ENOMEM, "no memory for a lane");
  }
  code = msi_window_peer(window, head->rank, (void **)&link->memory);
  if (code) return code;
  link->slots = (msi_slot *)(link->memory + msi_slot_at(&link->layout, link->lane, 1));
  return MPISERVE_OK;
}

/* Buffers that were not given back stay as they are: somebody may look at them. */
void msi_link_close(msi_link *link) {
  int held = 0;
  for (int i = MSI_SLOTS; i < MSI_LEASES; i++) held += msi_link_holds(link, i);
  if (link->alias && link->alias != link->memory && !held)
    msi_window_unalias(link->alias, reach(link));
  msi_window_ignore(&link->heard);
  if (link->transport == MPISERVE_RMA) free(link->slots);
  free(link->mailbox);
  link->slots = NULL;
  link->mailbox = NULL;
}

/* ---- slots ----------------------------------------------------------------------- */

int msi_link_free(const msi_link *link) { return !link->taken[link->sent % MSI_SLOTS]; }

static int ring_shared(msi_link *link, uint64_t sequence) {
  msi_front *front = (msi_front *)link->memory;
  atomic_store_explicit((_Atomic uint8_t *)(link->memory + link->layout.bells_at + link->lane),
                        (uint8_t)sequence, memory_order_release);
  msi_wait_wake(&front->asleep, &front->asleep);
  return MPISERVE_OK;
}

/* Payload and header must be visible at the head before the bell. On one node
 * the release store orders them. Over RMA nothing orders two Puts, so the first
 * is flushed; the second flush pushes the bell out (MPI may keep a Put back). */
static int ring(msi_link *link, uint64_t sequence) {
  if (link->transport == MPISERVE_SHARED) return ring_shared(link, sequence);
  uint8_t bell = (uint8_t)sequence;
  int code = msi_window_flush(link->window, link->head);
  if (!code)
    code = msi_window_put(link->window, link->head, link->layout.bells_at + link->lane, &bell, 1);
  if (!code) code = msi_window_flush(link->window, link->head);
  return code;
}

/* A receive is there before its message, and none that nobody answers. */
static int listen(msi_link *link) {
  if (link->transport == MPISERVE_SHARED || link->heard != MPI_REQUEST_NULL) return MPISERVE_OK;
  return msi_window_listen(link->window, link->head, link->place, link->mailbox, MESSAGE_BYTES,
                           &link->heard);
}

/* Over RMA the slot was filled in our copy of the lane. */
static int post(msi_link *link, size_t payload_bytes, void *owner) {
  uint64_t sequence = link->sent + 1;
  int at = (int)(link->sent % MSI_SLOTS), code = MPISERVE_OK;
  if (link->transport == MPISERVE_RMA)
    code =
        msi_window_put(link->window, link->head, msi_slot_at(&link->layout, link->lane, sequence),
                       &link->slots[at], sizeof(msi_request_header) + payload_bytes);
  if (!code) code = listen(link);
  if (!code) code = ring(link, sequence);
  if (code) return code;
  link->owed += link->transport == MPISERVE_RMA;
  link->sent = sequence;
  link->taken[at] = 1;
  link->owners[at] = owner;
  link->in_flight++;
  return MPISERVE_OK;
}

static msi_slot *fill(msi_link *link, msi_kind kind, int64_t rows, int lease) {
  msi_slot *slot = &link->slots[link->sent % MSI_SLOTS];
  slot->request.sequence = link->sent + 1;
  slot->request.kind = (uint8_t)kind;
  slot->request.rows = (uint32_t)rows;
  slot->request.lease = (int8_t)lease;
  atomic_store_explicit(&slot->request.cancelled, 0, memory_order_relaxed);
  return slot;
}

int msi_link_send(msi_link *link, msi_kind kind, int64_t rows, int lease, const char *text,
                  void *owner) {
  msi_slot *slot = fill(link, kind, rows, lease);
  size_t bytes = text ? msi_text_bytes(text, MSI_EAGER_BYTES) : 0;
  if (bytes) memcpy(slot->input, text, bytes);
  if (bytes) slot->request.rows = (uint32_t)bytes;
  return post(link, bytes, owner);
}

int msi_link_cancel(msi_link *link, uint64_t sequence) {
  msi_slot *slot = &link->slots[(sequence - 1) % MSI_SLOTS];
  atomic_store_explicit(&slot->request.cancelled, 1, memory_order_release);
  if (link->transport == MPISERVE_SHARED) return MPISERVE_OK;
  const uint32_t cancelled = 1;
  int code = msi_window_put(link->window, link->head,
                            msi_slot_at(&link->layout, link->lane, sequence) +
                                offsetof(msi_slot, request.cancelled),
                            &cancelled, sizeof cancelled);
  return code ? code : msi_window_flush(link->window, link->head);
}

int msi_link_reply(msi_link *link) {
  for (int i = 0; i < MSI_SLOTS; i++) {
    int at = (int)((link->sent + (uint64_t)i) % MSI_SLOTS);
    if (!link->taken[at]) continue;
    msi_slot *slot = &link->slots[at];
    /* Pairs with the head's release of the reply: rows and code are complete. */
    if (atomic_load_explicit(&slot->reply.sequence, memory_order_acquire) == slot->request.sequence)
      return at;
  }
  return -1;
}

int msi_link_bed(msi_link *link, uint64_t sequence, msi_bed *bed) {
  if (link->transport != MPISERVE_SHARED) return 0;
  msi_slot *slot = &link->slots[(sequence - 1) % MSI_SLOTS];
  *bed = (msi_bed){msi_low_half(&slot->reply.sequence), &slot->request.asleep, (uint32_t)sequence};
  return 1;
}

void msi_link_release(msi_link *link, int slot) {
  link->taken[slot] = 0;
  link->in_flight--;
}

static void deliver(msi_link *link) {
  msi_reply_header header;
  memcpy(&header, link->mailbox, sizeof header);
  uint64_t sequence = atomic_load_explicit(&header.sequence, memory_order_relaxed);
  msi_slot *slot = &link->slots[(sequence - 1) % MSI_SLOTS];
  memcpy(&slot->reply, link->mailbox, MESSAGE_BYTES);
}

int msi_link_hear(msi_link *link) {
  int code = MPISERVE_OK, heard = 1;
  while (!code && link->owed) {
    code = msi_window_hear(&link->heard, &heard);
    if (code || !heard) break;
    deliver(link);
    if (--link->owed) code = listen(link);
  }
  return code;
}

/* ---- rows -------------------------------------------------------------------------- */

int msi_link_lease_find(const msi_link *link, int64_t rows) {
  for (int i = 0; i < MSI_SLOTS; i++)
    if (!link->leases[i].users && !link->leases[i].stale && link->leases[i].rows >= rows) return i;
  return -1;
}

int msi_link_lease_spare(const msi_link *link) {
  for (int i = 0; i < MSI_SLOTS; i++)
    if (!link->leases[i].users && !link->leases[i].stale) return i;
  return -1;
}

static size_t slab_at(const msi_link *link, int outputs, int i, uint32_t row) {
  const msi_side *side = outputs ? &link->layout.outputs : &link->layout.inputs;
  const size_t *slabs = outputs ? link->layout.outputs_at : link->layout.inputs_at;
  return slabs[i] + row * side->row_bytes[i];
}

static uint32_t first_row(const msi_link *link, const msi_place *place) {
  return link->leases[place->lease].begin + place->row;
}

static int write_slabs(msi_link *link, const msi_cargo *cargo) {
  const msi_side *side = &link->layout.inputs;
  if (cargo->input.in_place) return MPISERVE_OK;
  for (int i = 0; i < side->n; i++) {
    size_t at = slab_at(link, 0, i, first_row(link, &cargo->input));
    size_t bytes = (size_t)cargo->rows * side->row_bytes[i];
    if (link->transport == MPISERVE_SHARED) {
      msi_copy(link->memory + at, cargo->inputs[i], bytes);
      continue;
    }
    int code = msi_window_put(link->window, link->head, at, cargo->inputs[i], bytes);
    if (code) return code;
  }
  return MPISERVE_OK;
}

static int read_slabs(msi_link *link, const msi_cargo *cargo) {
  const msi_side *side = &link->layout.outputs;
  int code = MPISERVE_OK;
  if (cargo->output.in_place) return code;
  for (int i = 0; i < side->n && !code; i++) {
    size_t at = slab_at(link, 1, i, first_row(link, &cargo->output));
    size_t bytes = (size_t)cargo->rows * side->row_bytes[i];
    if (link->transport == MPISERVE_SHARED)
      msi_copy(cargo->outputs[i], link->memory + at, bytes);
    else
      code = msi_window_get(link->window, link->head, at, cargo->outputs[i], bytes);
  }
  if (code || link->transport == MPISERVE_SHARED) return code;
  return msi_window_flush(link->window, link->head);
}

int msi_link_infer(msi_link *link, msi_kind kind, const msi_cargo *cargo, void *owner,
                   uint64_t *sequence) {
  msi_slot *slot = fill(link, kind, cargo->rows, cargo->input.lease);
  slot->request.row = cargo->input.row;
  slot->request.priority = cargo->priority;
  slot->request.deadline_ns = cargo->deadline_ns;
  if (cargo->deadline_ns && link->transport == MPISERVE_RMA) /* hosts have clocks of their own */
    slot->request.deadline_ns -= msi_now();
  slot->request.output_lease = (int8_t)cargo->output.lease;
  slot->request.output_row = cargo->output.row;
  size_t bytes = 0;
  int code = MPISERVE_OK;
  if (cargo->input.lease < 0) {
    msi_side_pack(&link->layout.inputs, cargo->rows, slot->input, cargo->inputs);
    bytes = (size_t)cargo->rows * link->layout.inputs.total_row_bytes;
  } else {
    code = write_slabs(link, cargo);
  }
  if (!code) code = post(link, bytes, owner);
  *sequence = link->sent;
  return code;
}

int msi_link_outputs(msi_link *link, int slot, const msi_cargo *cargo) {
  if (cargo->output.lease >= 0) return read_slabs(link, cargo);
  msi_side_unpack(&link->layout.outputs, cargo->rows, cargo->outputs, link->slots[slot].output);
  return MPISERVE_OK;
}

/* ---- buffers ------------------------------------------------------------------------- */

static void *buffer_at(const msi_link *link, int outputs, int i, uint32_t row) {
  return link->alias + slab_at(link, outputs, i, row);
}

int msi_link_holds(const msi_link *link, int at) {
  const msi_lease *lease = &link->leases[at];
  return lease->rows && !lease->once && !lease->stale;
}

int msi_link_find_place(const msi_link *link, int outputs, int64_t rows, void *const *data,
                        msi_place *place) {
  const msi_side *side = outputs ? &link->layout.outputs : &link->layout.inputs;
  /* Unsigned: an address before the memory is far behind it. */
  uintptr_t into = (uintptr_t)data[0] - (uintptr_t)link->alias;
  if (!link->alias || into >= reach(link)) return 0;
  for (int b = MSI_SLOTS; b < MSI_LEASES; b++) {
    const msi_lease *lease = &link->leases[b];
    uintptr_t from = (uintptr_t)data[0] - (uintptr_t)buffer_at(link, outputs, 0, lease->begin);
    uintptr_t row = from / side->row_bytes[0];
    if (!msi_link_holds(link, b) || row >= lease->rows || (uint64_t)rows > lease->rows - row)
      continue;
    int i = 0;
    while (i < side->n && data[i] == buffer_at(link, outputs, i, lease->begin + (uint32_t)row)) i++;
    if (i < side->n) return 0;
    *place = (msi_place){b, (uint32_t)row, 1};
    return 1;
  }
  return 0;
}

static int allocate_own(msi_link *link, int at, mpiserve_buffer *buffer) {
  const msi_side *in = &link->layout.inputs, *out = &link->layout.outputs;
  size_t bytes[2 * MPISERVE_MAX_TENSORS], total = 0;
  for (int i = 0; i < in->n + out->n; i++) {
    size_t row = i < in->n ? in->row_bytes[i] : out->row_bytes[i - in->n];
    bytes[i] = ((size_t)buffer->rows * row + MSI_ALIGN - 1) / MSI_ALIGN * MSI_ALIGN;
    total += bytes[i];
  }
  uint8_t *memory = aligned_alloc(MSI_ALIGN, total);
  if (!memory) return msi_error(MPISERVE_ENOMEM, "no memory for a buffer of %zu bytes", total);
  link->own[at - MSI_SLOTS] = memory;
  for (int i = 0; i < in->n + out->n; memory += bytes[i++])
    *(i < in->n ? &buffer->inputs[i] : &buffer->outputs[i - in->n]) = memory;
  return MPISERVE_OK;
}

int msi_link_map_buffer(msi_link *link, int at, mpiserve_buffer *buffer) {
  if (link->transport == MPISERVE_RMA) return allocate_own(link, at, buffer);
  if (!link->alias) link->alias = msi_window_alias(link->memory, reach(link));
  for (int i = 0; i < link->layout.inputs.n; i++)
    buffer->inputs[i] = buffer_at(link, 0, i, link->leases[at].begin);
  for (int i = 0; i < link->layout.outputs.n; i++)
    buffer->outputs[i] = buffer_at(link, 1, i, link->leases[at].begin);
  return MPISERVE_OK;
}

void msi_link_free_buffer(msi_link *link, int at) {
  free(link->own[at - MSI_SLOTS]);
  link->own[at - MSI_SLOTS] = NULL;
}
