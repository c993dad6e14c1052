#define _GNU_SOURCE
#include "link.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

/* Our lane is our rank among the clients that reach this head in this way. */
static uint32_t lane_of(const msi_world *world, int head, int transport, int rank) {
  uint32_t lane = 0;
  for (int r = 0; r < rank; r++)
    lane +=
        world->roles[r] == MPISERVE_SIMULATION && msi_window_transport(world, r, head) == transport;
  return lane;
}

int msi_link_open(msi_link *link, msi_window *window, const mpiserve_description *description,
                  int head) {
  const msi_world *world = window->world;
  *link = (msi_link){
      .window = window, .head = head, .transport = msi_window_transport(world, world->rank, head)};
  link->lane = lane_of(world, head, link->transport, world->rank);
  uint32_t lanes = lane_of(world, head, link->transport, world->size);
  int code = msi_layout_init(&link->layout, description, lanes);
  if (code) return code;
  if (link->transport == MPISERVE_RMA) {
    link->slots = calloc(MSI_SLOTS, sizeof *link->slots);
    return link->slots ? MPISERVE_OK : msi_error(MPISERVE_ENOMEM, "no memory for a lane");
  }
  code = msi_window_peer(window, head, (void **)&link->memory);
  if (code) return code;
  link->slots = (msi_slot *)(link->memory + msi_slot_at(&link->layout, link->lane, 1));
  return MPISERVE_OK;
}

void msi_link_close(msi_link *link) {
  if (link->transport == MPISERVE_RMA) free(link->slots);
  link->slots = NULL;
}

int msi_link_free(const msi_link *link) { return !link->owners[link->sent % MSI_SLOTS]; }

int msi_link_lease_find(const msi_link *link, int64_t rows) {
  for (int i = 0; i < MSI_SLOTS; i++)
    if (!link->leases[i].busy && link->leases[i].rows >= rows) return i;
  return -1;
}

int msi_link_lease_spare(const msi_link *link) {
  for (int i = 0; i < MSI_SLOTS; i++)
    if (!link->leases[i].busy) return i;
  return -1;
}

/* Payload and header must be visible at the head before the bell. On one node
 * the release store orders them. Over RMA nothing orders two Puts, so the first
 * is flushed; the second flush pushes the bell out (MPI may keep a Put back). */
static int ring(msi_link *link, uint64_t sequence) {
  uint8_t bell = (uint8_t)sequence;
  if (link->transport == MPISERVE_SHARED) {
    atomic_store_explicit((_Atomic uint8_t *)(link->memory + link->lane), bell,
                          memory_order_release);
    return MPISERVE_OK;
  }
  int code = msi_window_flush(link->window, link->head);
  if (!code) code = msi_window_put(link->window, link->head, link->lane, &bell, 1);
  if (!code) code = msi_window_flush(link->window, link->head);
  return code;
}

/* Over RMA the slot was filled in our copy of the lane. */
static int post(msi_link *link, uint64_t sequence, size_t payload_bytes) {
  if (link->transport == MPISERVE_SHARED) return ring(link, sequence);
  int code = msi_window_put(
      link->window, link->head, msi_slot_at(&link->layout, link->lane, sequence),
      &link->slots[(sequence - 1) % MSI_SLOTS], sizeof(msi_request_header) + payload_bytes);
  return code ? code : ring(link, sequence);
}

static void sent(msi_link *link, void *owner) {
  link->owners[link->sent++ % MSI_SLOTS] = owner;
  link->in_flight++;
}

static msi_slot *fill(msi_link *link, msi_kind kind, int64_t rows, int lease) {
  msi_slot *slot = &link->slots[link->sent % MSI_SLOTS];
  slot->request.sequence = link->sent + 1;
  slot->request.kind = (uint32_t)kind;
  slot->request.rows = (uint32_t)rows;
  slot->request.lease = lease;
  slot->request.text_bytes = 0;
  atomic_store_explicit(&slot->request.cancelled, 0, memory_order_relaxed);
  return slot;
}

int msi_link_send(msi_link *link, msi_kind kind, int64_t rows, int lease, const char *text,
                  void *owner) {
  msi_slot *slot = fill(link, kind, rows, lease);
  size_t bytes = text ? strnlen(text, MSI_EAGER_BYTES) : 0;
  if (bytes) memcpy(slot->input, text, bytes);
  slot->request.text_bytes = (uint32_t)bytes;
  int code = post(link, link->sent + 1, bytes);
  if (!code) sent(link, owner);
  return code;
}

static int write_slabs(msi_link *link, int64_t rows, uint32_t begin, void *const *inputs) {
  const msi_side *side = &link->layout.inputs;
  for (int i = 0; i < side->n; i++) {
    size_t at = link->layout.inputs_at[i] + begin * side->row_bytes[i];
    size_t bytes = (size_t)rows * side->row_bytes[i];
    if (link->transport == MPISERVE_SHARED) {
      memcpy(link->memory + at, inputs[i], bytes);
      continue;
    }
    int code = msi_window_put(link->window, link->head, at, inputs[i], bytes);
    if (code) return code;
  }
  return MPISERVE_OK;
}

int msi_link_infer(msi_link *link, int64_t rows, int lease, void *const *inputs, void *owner,
                   uint64_t *sequence) {
  msi_slot *slot = fill(link, MSI_INFER, rows, lease);
  size_t bytes = 0;
  int code = MPISERVE_OK;
  if (lease < 0) {
    msi_side_pack(&link->layout.inputs, rows, slot->input, inputs);
    bytes = (size_t)rows * link->layout.inputs.total_row_bytes;
  } else {
    code = write_slabs(link, rows, link->leases[lease].begin, inputs);
  }
  if (!code) code = post(link, link->sent + 1, bytes);
  if (code) return code;
  sent(link, owner);
  *sequence = link->sent;
  return MPISERVE_OK;
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
    if (!link->owners[at]) continue;
    msi_slot *slot = &link->slots[at];
    /* Pairs with the head's release of the reply: rows and code are complete. */
    if (atomic_load_explicit(&slot->reply.sequence, memory_order_acquire) == slot->request.sequence)
      return at;
  }
  return -1;
}

static int read_slabs(msi_link *link, int64_t rows, uint32_t begin, void *const *outputs) {
  const msi_side *side = &link->layout.outputs;
  int code = MPISERVE_OK;
  for (int i = 0; i < side->n && !code; i++) {
    size_t at = link->layout.outputs_at[i] + begin * side->row_bytes[i];
    size_t bytes = (size_t)rows * side->row_bytes[i];
    if (link->transport == MPISERVE_SHARED)
      memcpy(outputs[i], link->memory + at, bytes);
    else
      code = msi_window_get(link->window, link->head, at, outputs[i], bytes);
  }
  if (code || link->transport == MPISERVE_SHARED) return code;
  return msi_window_flush(link->window, link->head);
}

int msi_link_outputs(msi_link *link, int slot, int64_t rows, int lease, void *const *outputs) {
  if (lease >= 0) return read_slabs(link, rows, link->leases[lease].begin, outputs);
  msi_side_unpack(&link->layout.outputs, rows, outputs, link->slots[slot].output);
  return MPISERVE_OK;
}

void *msi_link_release(msi_link *link, int slot) {
  void *owner = link->owners[slot];
  link->owners[slot] = NULL;
  link->in_flight--;
  return owner;
}

void msi_link_deliver(msi_link *link, const void *message) {
  msi_reply_header header;
  memcpy(&header, message, sizeof header);
  uint64_t sequence = atomic_load_explicit(&header.sequence, memory_order_relaxed);
  msi_slot *slot = &link->slots[(sequence - 1) % MSI_SLOTS];
  memcpy(&slot->reply, message, sizeof slot->reply + sizeof slot->output);
}
