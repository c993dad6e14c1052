#define _GNU_SOURCE
#include "head/inbox.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "mpi/failure.h"

static uint32_t count_clients(const msi_world *world, int transport, int *clients) {
  uint32_t n = 0;
  for (int r = 0; r < world->size; r++) {
    if (!msi_world_is_client(world, r)) continue;
    if (msi_window_transport(world, r, world->rank) != transport) continue;
    if (clients) clients[n] = r;
    n++;
  }
  return n;
}

static int allocate(msi_inbox *inbox) {
  uint32_t lanes = inbox->layout.lanes;
  size_t lines = (lanes + MSI_ALIGN - 1) / MSI_ALIGN;
  inbox->seen = aligned_alloc(MSI_ALIGN, lines * MSI_ALIGN);
  if (inbox->seen) memset(inbox->seen, 0, lines * MSI_ALIGN);
  inbox->clients = calloc(lanes, sizeof *inbox->clients);
  inbox->lanes = calloc(lanes, sizeof *inbox->lanes);
  int lacking = !inbox->seen || !inbox->clients || !inbox->lanes;
  if (inbox->transport->reply_begin) {
    inbox->sends = malloc((size_t)lanes * MSI_SLOTS * sizeof *inbox->sends);
    lacking |= !inbox->sends;
    for (size_t i = 0; inbox->sends && i < (size_t)lanes * MSI_SLOTS; i++)
      inbox->sends[i] = MPI_REQUEST_NULL;
  }
  if (inbox->layout.inputs.n_free) {
    inbox->dims = calloc((size_t)lanes * MSI_SLOTS * (size_t)inbox->layout.inputs.n_free,
                         sizeof *inbox->dims);
    lacking |= !inbox->dims;
  }
  return lacking ? msi_error(MPISERVE_ENOMEM, "no memory for %u lanes", lanes) : MPISERVE_OK;
}

/* It seems to count already, with a request that stays: so the census, which each request passes,
 * needs no branch for it. */
static void mark_guest(const msi_world *world, msi_inbox *inbox, uint32_t lane) {
  if (!msi_world_is_guest(world, inbox->clients[lane])) return;
  inbox->lanes[lane].guest = inbox->lanes[lane].active = 1;
  inbox->lanes[lane].queued = 1;
}

int msi_inbox_open(msi_inbox *inbox, const msi_world *world, int transport,
                   const mpiserve_description *description, int service_index, size_t begin) {
  *inbox = (msi_inbox){.transport = msi_transport_at(transport), .service_index = service_index};
  uint32_t lanes = count_clients(world, transport, NULL);
  int code = msi_layout_init(&inbox->layout, description, lanes);
  if (code || !lanes) return code;
  msi_layout_move(&inbox->layout, begin);
  msi_layout_leave_room(&inbox->layout, world->measured, world->captured);
  code = allocate(inbox);
  if (!code) code = msi_row_pool_open(&inbox->pool, inbox->layout.slab_rows);
  if (!code) count_clients(world, transport, inbox->clients);
  for (uint32_t l = 0; l < lanes && !code; l++) mark_guest(world, inbox, l);
  return code;
}

void msi_inbox_attach(msi_inbox *inbox, msi_window *window) {
  inbox->window = window;
  const msi_segment *own = &window->segment;
  inbox->memory = window->memory[inbox->transport->number];
  inbox->in_segment = inbox->memory >= own->memory && inbox->memory < own->memory + own->bytes;
  if (!inbox->layout.lanes) return;
  /* Slabs are not touched here: pages that nobody uses cost nothing. */
  size_t begin = inbox->layout.header_at, end = msi_slot_at(&inbox->layout, inbox->layout.lanes, 1);
  memset(inbox->memory + begin, 0, end - begin);
  ((msi_section_header *)(inbox->memory + begin))->magic = MSI_MAGIC;
}

/* Is it the lane of a client that is dead, on a transport whose replies are messages? MPI may try
 * to send one for ever. */
static int is_deaf(const msi_inbox *inbox, uint32_t lane) {
  return inbox->sends && inbox->window &&
         msi_failure_is_dead(inbox->window->world, inbox->clients[lane]);
}

void msi_inbox_close(msi_inbox *inbox) {
  for (size_t i = 0; inbox->sends && i < (size_t)inbox->layout.lanes * MSI_SLOTS; i++)
    if (!is_deaf(inbox, (uint32_t)(i / MSI_SLOTS))) inbox->transport->reply_begin(&inbox->sends[i]);
  free(inbox->sends);
  free(inbox->dims);
  free(inbox->seen);
  free(inbox->clients);
  free(inbox->lanes);
  msi_row_pool_close(&inbox->pool);
  *inbox = (msi_inbox){0};
}

/* Doorbells are compared with what was seen of them a cache line at a time, so that a silent
 * client costs a third of an instruction. Only hints, so no atomics are needed: a lane that
 * differs is looked at again. Open MPI 4.1.4 (osc sm) gives window memory that is aligned
 * to 8 bytes only, where an aligned load crashes. */
typedef uint64_t pair __attribute__((vector_size(16)));
typedef pair loose __attribute__((aligned(8)));

#ifdef __SANITIZE_THREAD__
#define HINT __attribute__((no_sanitize_thread, noinline))
#else
#define HINT inline
#endif

static HINT int quiet(const uint8_t *doorbells, const uint8_t *seen) {
  const loose *now = (const loose *)doorbells;
  const pair *then = (const pair *)seen;
  pair differ = (now[0] ^ then[0]) | (now[1] ^ then[1]) | (now[2] ^ then[2]) | (now[3] ^ then[3]);
  return !(differ[0] | differ[1]);
}

static HINT int byte_differs(const uint8_t *doorbells, const uint8_t *seen) {
  return *(volatile const uint8_t *)doorbells != *seen;
}

static HINT int word_differs(const uint8_t *doorbells, const uint8_t *seen) {
  return *(volatile const uint64_t *)doorbells != *(const uint64_t *)seen;
}

int msi_inbox_rung(const msi_inbox *inbox, uint32_t *lane) {
  const uint8_t *doorbells = inbox->memory + inbox->layout.doorbells_at, *seen = inbox->seen;
  uint32_t at = *lane;
  while (at < inbox->layout.lanes) {
    if (at % MSI_ALIGN == 0 && quiet(doorbells + at, seen + at)) {
      at += MSI_ALIGN;
    } else if (at % 8 == 0 && !word_differs(doorbells + at, seen + at)) {
      at += 8;
    } else if (!byte_differs(doorbells + at, seen + at)) {
      at++;
    } else {
      /* Pairs with the client's release: its header and payload are visible. */
      atomic_load_explicit((const _Atomic uint8_t *)(doorbells + at), memory_order_acquire);
      *lane = at;
      return 1;
    }
  }
  return 0;
}

msi_slot *msi_inbox_slot(const msi_inbox *inbox, uint32_t lane, uint64_t sequence) {
  return (msi_slot *)(inbox->memory + msi_slot_at(&inbox->layout, lane, sequence));
}

static uint8_t slot_bit(uint64_t sequence) { return (uint8_t)(1 << (sequence - 1) % MSI_SLOTS); }

/* Volatile: else the compiler may read a word again after it was checked. The order does not
 * matter; all of it was visible before the doorbell. */
int msi_inbox_read(const msi_inbox *inbox, uint32_t lane, msi_request_header *request) {
  enum { WORDS = offsetof(msi_request_header, cancelled) / sizeof(uint64_t) };
  uint64_t sequence = inbox->lanes[lane].taken + 1, copy[WORDS];
  if (inbox->lanes[lane].open & (slot_bit(sequence) | MSI_SHUT)) return 0;
  const volatile uint64_t *from = (const volatile uint64_t *)msi_inbox_slot(inbox, lane, sequence);
  for (int i = 0; i < WORDS; i++) copy[i] = from[i];
  memcpy(request, copy, sizeof copy);
  return 1;
}

/* Volatile, as above. */
int msi_inbox_read_dims(msi_inbox *inbox, uint32_t lane, uint64_t sequence) {
  const msi_side *side = &inbox->layout.inputs;
  const volatile uint32_t *from =
      (const volatile uint32_t *)msi_inbox_slot(inbox, lane, sequence)->input;
  uint32_t *dims = msi_inbox_dims(inbox, lane, sequence);
  for (int i = 0; i < side->n_free; i++) dims[i] = from[i];
  return msi_layout_is_free(&inbox->layout) && msi_side_has_dims(side, dims);
}

/* The reply's line is wanted for writing soon: it is on its way while the request's is. */
uint64_t msi_inbox_take(msi_inbox *inbox, uint32_t lane, int64_t *seen_ns) {
  msi_lane *l = &inbox->lanes[lane];
  int64_t *noted = &l->seen_ns[l->taken % MSI_SLOTS];
  *seen_ns = *noted;
  *noted = 0;
  uint64_t sequence = ++l->taken;
  l->open |= slot_bit(sequence);
  inbox->seen[lane] = (uint8_t)sequence;
  __builtin_prefetch(&msi_inbox_slot(inbox, lane, sequence)->reply, 1);
  return sequence;
}

void msi_inbox_lease_drop(msi_inbox *inbox, uint32_t lane, int i) {
  msi_row_pool_give(&inbox->pool, inbox->lanes[lane].leases[i]);
  inbox->lanes[lane].leases[i] = (msi_range){0};
}

int msi_inbox_lease(msi_inbox *inbox, uint32_t lane, int i, uint32_t rows) {
  msi_inbox_lease_drop(inbox, lane, i);
  return !rows || msi_row_pool_take(&inbox->pool, rows, &inbox->lanes[lane].leases[i]);
}

int msi_inbox_lease_once(const msi_inbox *inbox, msi_range range) {
  return range.begin + range.rows > inbox->pool.rows / 2;
}

void msi_inbox_note(msi_inbox *inbox, uint32_t lane, int64_t now_ns) {
  msi_lane *l = &inbox->lanes[lane];
  const uint8_t *at = inbox->memory + inbox->layout.doorbells_at + lane;
  uint8_t doorbell = atomic_load_explicit((const _Atomic uint8_t *)at, memory_order_relaxed);
  uint64_t pending = (uint8_t)(doorbell - (uint8_t)l->taken);
  for (uint64_t i = 0; i < pending && i < MSI_SLOTS; i++) {
    int64_t *noted = &l->seen_ns[(l->taken + i) % MSI_SLOTS];
    if (!*noted) *noted = now_ns;
  }
}

/* NULL where replies are no messages. */
static MPI_Request *send_of(msi_inbox *inbox, uint32_t lane, uint64_t sequence) {
  return inbox->sends ? &inbox->sends[lane * MSI_SLOTS + (sequence - 1) % MSI_SLOTS] : NULL;
}

int msi_inbox_reply_begin(msi_inbox *inbox, uint32_t lane, uint64_t sequence, msi_slot **slot) {
  int code = MPISERVE_OK;
  if (inbox->sends && !is_deaf(inbox, lane))
    code = inbox->transport->reply_begin(send_of(inbox, lane, sequence));
  *slot = msi_inbox_slot(inbox, lane, sequence);
  msi_reply_header *reply = &(*slot)->reply;
  memset((char *)reply + sizeof reply->sequence, 0, sizeof *reply - sizeof reply->sequence);
  return code;
}

int msi_inbox_reply_end(msi_inbox *inbox, uint32_t lane, uint64_t sequence, size_t payload_bytes) {
  msi_slot *slot = msi_inbox_slot(inbox, lane, sequence);
  inbox->lanes[lane].open &= (uint8_t)~slot_bit(sequence);
  /* The client reads code and rows after it has seen this. */
  atomic_store_explicit(&slot->reply.sequence, sequence, memory_order_release);
  if (is_deaf(inbox, lane)) return MPISERVE_OK;
  return inbox->transport->reply_end(inbox->window, inbox->clients[lane], inbox->service_index,
                                     slot, payload_bytes, send_of(inbox, lane, sequence));
}

int msi_inbox_reply(msi_inbox *inbox, uint32_t lane, uint64_t sequence, int code,
                    const char *text) {
  msi_slot *slot;
  int failed = msi_inbox_reply_begin(inbox, lane, sequence, &slot);
  if (failed) return failed;
  size_t bytes = text ? msi_text_bytes(text, MSI_EAGER_BYTES) : 0;
  if (bytes) memcpy(slot->output, text, bytes);
  slot->reply.code = (int16_t)code;
  slot->reply.text_bytes = (uint32_t)bytes;
  return msi_inbox_reply_end(inbox, lane, sequence, bytes);
}

int msi_inbox_reply_empty(msi_inbox *inbox, uint32_t lane, uint64_t sequence, uint16_t generation) {
  msi_slot *slot;
  int code = msi_inbox_reply_begin(inbox, lane, sequence, &slot);
  slot->reply.generation = generation;
  return code ? code : msi_inbox_reply_end(inbox, lane, sequence, 0);
}
