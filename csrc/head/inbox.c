#define _GNU_SOURCE
#include "head/inbox.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static uint32_t count_clients(const msi_world *world, int transport, int *clients) {
  uint32_t n = 0;
  for (int r = 0; r < world->size; r++) {
    if (world->roles[r] != MPISERVE_SIMULATION) continue;
    if (msi_window_transport(world, r, world->rank) != transport) continue;
    if (clients) clients[n] = r;
    n++;
  }
  return n;
}

static int allocate(msi_port *port) {
  uint32_t lanes = port->layout.lanes;
  size_t lines = (lanes + MSI_ALIGN - 1) / MSI_ALIGN;
  port->seen = aligned_alloc(MSI_ALIGN, lines * MSI_ALIGN);
  if (port->seen) memset(port->seen, 0, lines * MSI_ALIGN);
  port->clients = calloc(lanes, sizeof *port->clients);
  port->lanes = calloc(lanes, sizeof *port->lanes);
  int lacking = !port->seen || !port->clients || !port->lanes;
  if (port->transport == MPISERVE_RMA) {
    port->told = malloc((size_t)lanes * MSI_SLOTS * sizeof *port->told);
    lacking |= !port->told;
    for (size_t i = 0; !lacking && i < (size_t)lanes * MSI_SLOTS; i++)
      port->told[i] = MPI_REQUEST_NULL;
  }
  return lacking ? msi_error(MPISERVE_ENOMEM, "no memory for %u lanes", lanes) : MPISERVE_OK;
}

int msi_port_open(msi_port *port, const msi_world *world, int transport,
                  const mpiserve_description *description, int place, size_t begin) {
  *port = (msi_port){.transport = transport, .place = place};
  uint32_t lanes = count_clients(world, transport, NULL);
  int code = msi_layout_init(&port->layout, description, lanes);
  if (code || !lanes) return code;
  msi_layout_move(&port->layout, begin);
  code = allocate(port);
  if (!code) code = msi_pool_open(&port->pool, port->layout.pool_rows);
  if (!code) count_clients(world, transport, port->clients);
  return code;
}

int msi_port_attach(msi_port *port, msi_window *window) {
  port->window = window;
  port->memory = window->memory[port->transport];
  if (!port->layout.lanes) return MPISERVE_OK;
  /* Slabs are not touched here: pages that nobody uses cost nothing. */
  size_t begin = port->layout.front_at, end = msi_slot_at(&port->layout, port->layout.lanes, 1);
  memset(port->memory + begin, 0, end - begin);
  return MPISERVE_OK;
}

void msi_port_close(msi_port *port) {
  for (size_t i = 0; port->told && i < (size_t)port->layout.lanes * MSI_SLOTS; i++)
    msi_window_told(&port->told[i]);
  free(port->told);
  free(port->seen);
  free(port->clients);
  free(port->lanes);
  msi_pool_close(&port->pool);
  *port = (msi_port){0};
}

/* Bells are compared with what was seen of them a cache line at a time, so that a silent
 * client costs a third of an instruction. Only hints, so no atomics are needed: whoever
 * has rung is looked at again. Open MPI 4.1.4 (osc sm) gives window memory that is aligned
 * to 8 bytes only, where an aligned load crashes. */
typedef uint64_t pair __attribute__((vector_size(16)));
typedef pair loose __attribute__((aligned(8)));

#ifdef __SANITIZE_THREAD__
#define HINT __attribute__((no_sanitize_thread, noinline))
#else
#define HINT inline
#endif

static HINT int quiet(const uint8_t *bells, const uint8_t *seen) {
  const loose *now = (const loose *)bells;
  const pair *then = (const pair *)seen;
  pair differ = (now[0] ^ then[0]) | (now[1] ^ then[1]) | (now[2] ^ then[2]) | (now[3] ^ then[3]);
  return !(differ[0] | differ[1]);
}

static HINT int byte_differs(const uint8_t *bells, const uint8_t *seen) {
  return *(volatile const uint8_t *)bells != *seen;
}

static HINT int word_differs(const uint8_t *bells, const uint8_t *seen) {
  return *(volatile const uint64_t *)bells != *(const uint64_t *)seen;
}

int msi_port_rung(const msi_port *port, uint32_t *lane) {
  const uint8_t *bells = port->memory + port->layout.bells_at, *seen = port->seen;
  uint32_t at = *lane;
  while (at < port->layout.lanes) {
    if (at % MSI_ALIGN == 0 && quiet(bells + at, seen + at)) {
      at += MSI_ALIGN;
    } else if (at % 8 == 0 && !word_differs(bells + at, seen + at)) {
      at += 8;
    } else if (!byte_differs(bells + at, seen + at)) {
      at++;
    } else {
      /* Pairs with the client's release: its header and payload are visible. */
      atomic_load_explicit((const _Atomic uint8_t *)(bells + at), memory_order_acquire);
      *lane = at;
      return 1;
    }
  }
  return 0;
}

msi_slot *msi_port_slot(const msi_port *port, uint32_t lane, uint64_t sequence) {
  return (msi_slot *)(port->memory + msi_slot_at(&port->layout, lane, sequence));
}

static uint8_t slot_bit(uint64_t sequence) { return (uint8_t)(1 << (sequence - 1) % MSI_SLOTS); }

/* Volatile: else the compiler may read a word again after it was checked. The order does not
 * matter; all of it was visible before the doorbell. */
int msi_port_read(const msi_port *port, uint32_t lane, msi_request_header *request) {
  enum { WORDS = offsetof(msi_request_header, cancelled) / sizeof(uint64_t) };
  uint64_t sequence = port->lanes[lane].taken + 1, copy[WORDS];
  if (port->lanes[lane].open & slot_bit(sequence)) return 0;
  const volatile uint64_t *from = (const volatile uint64_t *)msi_port_slot(port, lane, sequence);
  for (int i = 0; i < WORDS; i++) copy[i] = from[i];
  memcpy(request, copy, sizeof copy);
  return 1;
}

/* The reply's line is wanted for writing soon: it is on its way while the request's is. */
uint64_t msi_port_take(msi_port *port, uint32_t lane, int64_t *seen_ns) {
  msi_lane *l = &port->lanes[lane];
  int64_t *noted = &l->seen_ns[l->taken % MSI_SLOTS];
  *seen_ns = *noted;
  *noted = 0;
  uint64_t sequence = ++l->taken;
  l->open |= slot_bit(sequence);
  port->seen[lane] = (uint8_t)sequence;
  __builtin_prefetch(&msi_port_slot(port, lane, sequence)->reply, 1);
  return sequence;
}

void msi_port_lease_drop(msi_port *port, uint32_t lane, int i) {
  msi_pool_give(&port->pool, port->lanes[lane].leases[i]);
  port->lanes[lane].leases[i] = (msi_range){0};
}

int msi_port_lease(msi_port *port, uint32_t lane, int i, uint32_t rows) {
  msi_port_lease_drop(port, lane, i);
  return !rows || msi_pool_take(&port->pool, rows, &port->lanes[lane].leases[i]);
}

int msi_port_lease_once(const msi_port *port, msi_range range) {
  return range.begin + range.rows > port->pool.rows / 2;
}

void msi_port_note(msi_port *port, uint32_t lane, int64_t now_ns) {
  msi_lane *l = &port->lanes[lane];
  const uint8_t *at = port->memory + port->layout.bells_at + lane;
  uint8_t bell = atomic_load_explicit((const _Atomic uint8_t *)at, memory_order_relaxed);
  uint64_t pending = (uint8_t)(bell - (uint8_t)l->taken);
  for (uint64_t i = 0; i < pending && i < MSI_SLOTS; i++) {
    int64_t *noted = &l->seen_ns[(l->taken + i) % MSI_SLOTS];
    if (!*noted) *noted = now_ns;
  }
}

static MPI_Request *told(msi_port *port, uint32_t lane, uint64_t sequence) {
  return &port->told[lane * MSI_SLOTS + (sequence - 1) % MSI_SLOTS];
}

/* The last message from this slot has been received (else the client would not
 * have used the slot again), but MPI may not have told us yet. */
int msi_port_reply_begin(msi_port *port, uint32_t lane, uint64_t sequence, msi_slot **slot) {
  int code = port->told ? msi_window_told(told(port, lane, sequence)) : MPISERVE_OK;
  *slot = msi_port_slot(port, lane, sequence);
  msi_reply_header *reply = &(*slot)->reply;
  memset((char *)reply + sizeof reply->sequence, 0, sizeof *reply - sizeof reply->sequence);
  return code;
}

int msi_port_reply_end(msi_port *port, uint32_t lane, uint64_t sequence, size_t payload_bytes) {
  msi_reply_header *reply = &msi_port_slot(port, lane, sequence)->reply;
  port->lanes[lane].open &= (uint8_t)~slot_bit(sequence);
  /* The client reads code and rows after it has seen this. */
  atomic_store_explicit(&reply->sequence, sequence, memory_order_release);
  if (!port->told) {
    msi_wait_wake(msi_low_half(&reply->sequence),
                  &msi_port_slot(port, lane, sequence)->request.asleep);
    return MPISERVE_OK;
  }
  return msi_window_tell(port->window, port->clients[lane], port->place, reply,
                         sizeof *reply + payload_bytes, told(port, lane, sequence));
}

int msi_port_reply(msi_port *port, uint32_t lane, uint64_t sequence, int code, const char *text) {
  msi_slot *slot;
  int failed = msi_port_reply_begin(port, lane, sequence, &slot);
  if (failed) return failed;
  size_t bytes = text ? msi_text_bytes(text, MSI_EAGER_BYTES) : 0;
  if (bytes) memcpy(slot->output, text, bytes);
  slot->reply.code = (int16_t)code;
  slot->reply.text_bytes = (uint32_t)bytes;
  return msi_port_reply_end(port, lane, sequence, bytes);
}
