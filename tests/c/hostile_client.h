/* hostile_client: a client that writes what it likes into its own lane. Whatever it
 * writes, each request that the head takes gets one reply, and the head takes one for each step of
 * the doorbell: so this rank knows when it is in step again. */
#ifndef HOSTILE_CLIENT_H
#define HOSTILE_CLIENT_H

#include <unistd.h>

#include "api/session.h"
#include "fuzz_seeds.h"

enum { HOSTILE_ROWS = 100, ROUNDS = 60, MOST_RUNG = 200, MOST_WRITES = 400, REPLY_BYTES = 448 };

_Static_assert(REPLY_BYTES == sizeof(msi_reply_header) + MSI_EAGER_BYTES, "one message");

typedef struct attacker {
  msi_endpoint *endpoint;
  dice d;
  int64_t most_rows;
  int columns; /* at most, if they are free */
  uint64_t sent;
} attacker;

/* ---- writes into the lane ----------------------------------------------------------------- */

static int same_node(const attacker *a) { return a->endpoint->path.transport->same_node; }

/* At so many bytes from the begin of the lane, by words. */
static void lane_write(attacker *a, size_t at, const void *from, size_t bytes) {
  msi_path *path = &a->endpoint->path;
  if (!same_node(a)) {
    must(msi_window_put(path->window, path->head, path->slots_at + at, from, bytes), "put");
    must(msi_window_flush(path->window, path->head), "flush");
    return;
  }
  volatile uint32_t *to = (volatile uint32_t *)((uint8_t *)path->slots + at);
  for (size_t i = 0; i < bytes / sizeof *to; i++) to[i] = ((const uint32_t *)from)[i];
}

static void ring(attacker *a, uint64_t number) {
  msi_path *path = &a->endpoint->path;
  uint8_t doorbell = (uint8_t)number;
  if (same_node(a)) {
    atomic_store((_Atomic uint8_t *)(path->memory + path->doorbell_at), doorbell);
    return;
  }
  must(msi_window_put(path->window, path->head, path->doorbell_at, &doorbell, 1), "put");
  must(msi_window_flush(path->window, path->head), "flush");
}

/* ---- what it writes ------------------------------------------------------------------------- */

/* All but FAIL and LEAVE, which everybody is to believe. */
static uint8_t a_kind(dice *d) {
  static const uint8_t kinds[] = {
      MSI_ATTACH, MSI_LEASE,      MSI_LEASE,  MSI_KEEP,   MSI_VISIT, MSI_DEPART,         MSI_CHANGE,
      MSI_PIECE,  MSI_LAST_PIECE, MSI_RECORD, MSI_RECORD, 0,         MSI_LAST_PIECE + 1, 255};
  return chance(d, 60) ? MSI_INFER : kinds[pick(d, (int)sizeof kinds)];
}

static uint32_t some_rows(const attacker *a, dice *d) {
  int64_t most = a->most_rows;
  return (uint32_t)(int64_t)ANY_OF(d, 0, 1, 2, most, most, most + 1, INT32_MAX, UINT32_MAX,
                                   2147483648.0, pick(d, (int)most + 1), pick(d, 1000));
}

static int8_t a_lease(dice *d) {
  return (int8_t)ANY_OF(d, -1, -1, 0, 1, MSI_SLOTS - 1, MSI_SLOTS, MSI_LEASES - 1, MSI_LEASES, -128,
                        127, pick(d, MSI_LEASES));
}

static int64_t a_deadline(dice *d) {
  const int64_t deadlines[] = {0, 0, 0, 1, -1, INT64_MAX, INT64_MIN, 1000000, msi_now() + 100000};
  return deadlines[pick(d, sizeof deadlines / sizeof *deadlines)];
}

static msi_request_header a_header(attacker *a, uint64_t sequence) {
  dice *d = &a->d;
  msi_request_header header = {.sequence = chance(d, 90) ? sequence : roll(d),
                               .kind = a_kind(d),
                               .priority = (int8_t)pick(d, 256),
                               .lease = a_lease(d),
                               .output_lease = a_lease(d),
                               .rows = some_rows(a, d),
                               .deadline_ns = a_deadline(d),
                               .row = chance(d, 70) ? 0 : some_rows(a, d),
                               .output_row = chance(d, 70) ? 0 : some_rows(a, d)};
  header.cancelled = (uint32_t)(chance(d, 80) ? 0 : roll(d));
  header.asleep = (uint32_t)(chance(d, 80) ? 0 : roll(d));
  return header;
}

static size_t slot_of(uint64_t sequence) { return (sequence - 1) % MSI_SLOTS * sizeof(msi_slot); }

/* The number of a reply is not its to write: by it this rank knows that the reply has come. */
static void write_anywhere(attacker *a) {
  size_t at = (size_t)pick(&a->d, MSI_SLOTS * sizeof(msi_slot) / 8) * 8;
  size_t within = at % sizeof(msi_slot);
  uint64_t word = roll(&a->d);
  if (within == offsetof(msi_slot, reply.sequence)) return;
  if (within == offsetof(msi_request_header, kind)) {
    const msi_request_header header = a_header(a, 0);
    memcpy(&word, (const uint8_t *)&header + within, sizeof word);
  }
  lane_write(a, at, &word, sizeof word);
}

/* Cancelled, asleep, and back. */
static void flip(attacker *a) {
  uint32_t word = (uint32_t)ANY_OF(&a->d, 0, 1, 1, 77);
  size_t at = chance(&a->d, 70) ? offsetof(msi_request_header, cancelled)
                                : offsetof(msi_request_header, asleep);
  lane_write(a, (size_t)pick(&a->d, MSI_SLOTS) * sizeof(msi_slot) + at, &word, sizeof word);
}

/* And what may be free dimensions: mostly good ones, or the head looks no further. */
static void write_header(attacker *a, uint64_t sequence) {
  struct {
    msi_request_header header;
    uint32_t dims[2];
  } first = {.header = a_header(a, sequence)};
  int good = 1 + pick(&a->d, a->columns);
  first.dims[0] =
      (uint32_t)(int64_t)ANY_OF(&a->d, good, good, good, 1, 0, a->columns + 1, UINT32_MAX);
  lane_write(a, slot_of(sequence), &first, sizeof first);
}

/* What the head has checked must be what it uses. */
static void write_meanwhile(attacker *a) {
  int most = same_node(a) ? MOST_WRITES : MOST_WRITES / 10;
  for (int i = pick(&a->d, most); i > 0; i--) {
    uint64_t sequence = a->sent - (uint64_t)pick(&a->d, MSI_SLOTS);
    if (chance(&a->d, 40))
      write_header(a, sequence);
    else if (chance(&a->d, 50))
      flip(a);
    else
      write_anywhere(a);
  }
}

/* ---- in step again -------------------------------------------------------------------------- */

static void await_messages(attacker *a, uint64_t n) {
  msi_path *path = &a->endpoint->path;
  for (int come = 0; n > 0; n -= (uint64_t)come) {
    if (path->recv == MPI_REQUEST_NULL)
      must(msi_window_post_recv(path->window, path->head, path->service_index, path->message,
                                REPLY_BYTES, &path->recv),
           "post_recv");
    must(msi_window_test_recv(path->window, &path->recv, &come), "test_recv");
  }
}

static void await_words(attacker *a, uint64_t n) {
  for (uint64_t i = 0; i < MSI_SLOTS && i < n; i++) {
    const uint8_t *slot = (const uint8_t *)a->endpoint->path.slots + slot_of(a->sent - i);
    const _Atomic uint64_t *word =
        (const _Atomic uint64_t *)(slot + offsetof(msi_slot, reply.sequence));
    while (atomic_load(word) != a->sent - i) usleep(50);
  }
}

/* n requests have been rung for. */
static void await(attacker *a, uint64_t n) {
  doing("await %llu replies", (unsigned long long)n);
  (same_node(a) ? await_words : await_messages)(a, n);
}

/* ---- the attack ----------------------------------------------------------------------------- */

/* Plausible requests, in all slots, at once or one by one. */
static void send_plausible(attacker *a) {
  uint64_t n = 1 + (uint64_t)pick(&a->d, MSI_SLOTS);
  int one_by_one = chance(&a->d, 50);
  doing("%llu plausible requests", (unsigned long long)n);
  for (uint64_t i = 0; i < n; i++) {
    write_header(a, ++a->sent);
    if (one_by_one) ring(a, a->sent);
  }
  ring(a, a->sent);
  write_meanwhile(a);
  await(a, n);
}

/* Where nobody has asked. */
static void ring_for_nothing(attacker *a) {
  uint64_t n = 1 + (uint64_t)pick(&a->d, MOST_RUNG);
  doing("ring %llu times", (unsigned long long)n);
  a->sent += n;
  ring(a, a->sent);
  write_meanwhile(a);
  await(a, n);
}

static void one_request(attacker *a, msi_kind kind, uint32_t rows, int lease) {
  const msi_request_header header = {
      .sequence = ++a->sent, .kind = (uint8_t)kind, .rows = rows, .lease = (int8_t)lease};
  lane_write(a, slot_of(a->sent), &header, sizeof header);
  ring(a, a->sent);
  await(a, 1);
}

/* Others need rows too. */
static void give_all_back(attacker *a) {
  for (int i = 0; i < MSI_LEASES; i++) one_request(a, MSI_LEASE, 0, i);
}

static void attack(mpiserve_session *session, int64_t most_rows, int columns, int fails) {
  msi_endpoint *endpoint = &session->client.endpoints[0];
  attacker a = {.endpoint = endpoint, .d = {mix(me.seed) + (uint64_t)me.rank}};
  a.most_rows = most_rows;
  a.columns = columns;
  a.sent = endpoint->sent;
  await(&a, a.sent); /* of attaching */
  for (int i = 0; i < ROUNDS; i++) {
    if (chance(&a.d, 15))
      ring_for_nothing(&a);
    else
      send_plausible(&a);
    if (i % 8 == 7) give_all_back(&a);
  }
  if (fails) one_request(&a, MSI_FAIL, some_rows(&a, &a.d), a_lease(&a.d));
  give_all_back(&a);
  endpoint->sent = a.sent;
  endpoint->in_flight = 0;
  memset(endpoint->taken, 0, sizeof endpoint->taken);
  endpoint->path.replies_to_come = 0;
}

#endif
