/* ranks: 4
 *
 * One simulation rank writes what it likes into its own lane, while others ask. The head neither
 * crashes nor waits, and the others get their answers. */
#define _GNU_SOURCE
#include <mpi.h>
#include <unistd.h>

#include "api/session.h"
#include "check.h"

enum {
  HEAD = 3,
  MAX_ROWS = 100,
  ROUNDS = 3000,
  ASKED = 400,
  FLOOD = 1000,
  SLOW_US = 500,
  COLUMNS = 5,
  LIMIT_S = 100
};

static uint64_t state = 88172645463325252u;

static uint64_t roll(void) {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

static int pick(int n) { return (int)(roll() >> 33) % n; }

static int64_t any_of(const int64_t *numbers, int n) { return numbers[pick(n)]; }

#define ANY_OF(...) \
  any_of((const int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

/* ---- the hostile rank ------------------------------------------------------------------- */

/* Not that it failed or left, which everybody is to believe. */
static int a_kind(void) {
  int kind = pick(4) ? MSI_INFER + 4 * pick(2) : pick(14);
  return kind == MSI_FAIL || kind == MSI_LEAVE ? MSI_LEASE : kind;
}

static int64_t some_rows(void) {
  return ANY_OF(0, 1, 2, 7, MAX_ROWS, MAX_ROWS + 1, INT32_MAX, UINT32_MAX, 0x80000000,
                pick(MAX_ROWS));
}

static int a_lease(void) {
  return (int)ANY_OF(-1, 0, 1, MSI_SLOTS - 1, MSI_SLOTS, MSI_LEASES - 1, MSI_LEASES, -128, 127,
                     pick(MSI_LEASES));
}

static void take_replies(msi_endpoint *endpoint) {
  int slot;
  CHECK(msi_endpoint_progress(endpoint) == MPISERVE_OK);
  while ((slot = msi_endpoint_reply(endpoint)) >= 0) msi_endpoint_release(endpoint, slot);
  MPI_Iprobe(HEAD, 0, MPI_COMM_WORLD, &slot, MPI_STATUS_IGNORE);
}

/* Right in form. */
static void send_plausible(msi_endpoint *endpoint) {
  char text[MSI_EAGER_BYTES + 1];
  for (size_t i = 0; i < sizeof text; i++) text[i] = (char)(1 + pick(127));
  text[pick(MSI_EAGER_BYTES)] = 0;
  CHECK(
      !msi_endpoint_send(endpoint, a_kind(), some_rows(), a_lease(), pick(3) ? NULL : text, NULL));
}

/* All but the word that tells of a reply, or we would wait for ever. */
static void scribble(msi_slot *slot) {
  volatile uint64_t *words = (volatile uint64_t *)slot;
  size_t at = (size_t)pick(sizeof *slot / sizeof *words);
  if (at != offsetof(msi_slot, reply.sequence) / sizeof *words) words[at] = roll();
  ((volatile msi_request_header *)&slot->request)->kind = (uint8_t)a_kind();
}

static void write_fields(msi_request_header *request) {
  volatile msi_request_header *r = request;
  r->rows = (uint32_t)some_rows();
  r->lease = (int8_t)a_lease();
  r->output_lease = (int8_t)a_lease();
  r->row = (uint32_t)some_rows();
  r->output_row = (uint32_t)some_rows();
  r->deadline_ns = ANY_OF(0, 1, -1, INT64_MAX, INT64_MIN);
  r->priority = (int8_t)pick(256);
  r->kind = (uint8_t)a_kind();
}

/* Before and after the doorbell: what the head has checked must be what it uses. */
static void send_raw(msi_endpoint *endpoint) {
  uint64_t sequence = endpoint->sent + 1;
  msi_slot *slot = &endpoint->path.slots[endpoint->sent % MSI_SLOTS];
  if (!pick(3))
    for (int i = pick(50); i > 0; i--) scribble(slot);
  CHECK(!msi_endpoint_send(endpoint, a_kind(), some_rows(), a_lease(), NULL, NULL));
  for (int i = pick(3000); i > 0; i--) {
    write_fields(&slot->request);
    if (!pick(20)) scribble(slot);
    if (!pick(20)) slot->request.sequence = pick(2) ? sequence : roll();
  }
  slot->request.sequence = sequence; /* or we would not know the reply */
}

/* Where nobody has asked: the lane is then out of step until the head has caught up. */
static void ring_for_nothing(msi_endpoint *endpoint) {
  uint8_t *doorbell = endpoint->path.memory + endpoint->path.doorbell_at;
  if (endpoint->in_flight) return;
  int more = pick(200);
  atomic_store((_Atomic uint8_t *)doorbell, (uint8_t)(endpoint->sent + (uint64_t)more));
  endpoint->sent += (uint64_t)more;
  for (int i = 0; i < MSI_SLOTS; i++) {
    uint64_t sequence = endpoint->sent - (uint64_t)i;
    msi_slot *slot = &endpoint->path.slots[(sequence - 1) % MSI_SLOTS];
    while (i < more && atomic_load(&slot->reply.sequence) != sequence) usleep(100);
  }
}

static void lease_all(msi_endpoint *endpoint, int64_t rows) {
  for (int i = 0; i < MSI_LEASES; i++) {
    while (!msi_endpoint_can_send(endpoint)) take_replies(endpoint);
    CHECK(!msi_endpoint_send(endpoint, MSI_LEASE, i ? 0 : rows, i, NULL, NULL));
  }
  while (endpoint->in_flight) take_replies(endpoint);
}

/* Large requests, without a look at the replies. */
static void flood(msi_endpoint *endpoint) {
  const msi_payload payload = {.rows = MAX_ROWS, .input = {0, 0, 1}, .output = {0, 0, 1}};
  uint64_t sequence;
  lease_all(endpoint, MAX_ROWS);
  for (int i = 0; i < FLOOD; i++) {
    CHECK(!msi_endpoint_infer(endpoint, MSI_INFER, &payload, NULL, &sequence));
    if (i % MSI_SLOTS == 0) usleep(SLOW_US);
  }
  endpoint->in_flight = MSI_SLOTS; /* the others were overwritten */
  while (endpoint->in_flight) take_replies(endpoint);
}

static void attack(mpiserve_session *session) {
  msi_endpoint *endpoint = &session->client.endpoints[0];
  for (int i = 0; i < ROUNDS; i++) {
    while (!msi_endpoint_can_send(endpoint)) take_replies(endpoint);
    if (!endpoint->path.transport->same_node || !pick(3))
      send_plausible(endpoint);
    else if (pick(20))
      send_raw(endpoint);
    else
      ring_for_nothing(endpoint);
    take_replies(endpoint);
  }
  while (endpoint->in_flight) take_replies(endpoint);
  if (endpoint->path.transport->same_node) flood(endpoint);
  lease_all(endpoint, 0);
}

/* ---- the others ----------------------------------------------------------------------------- */

static void ask(mpiserve_service *service, double *x, double *y, int rank, int rows) {
  mpiserve_tensor in = {.data = x, .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {rows, COLUMNS}};
  mpiserve_tensor out = in;
  out.data = y;
  for (int i = 0; i < rows * COLUMNS; i++) x[i] = 1000 * rank + i;
  memset(y, 0, (size_t)(rows * COLUMNS) * sizeof *y);
  CHECK(mpiserve_infer(service, 1, &in, 1, &out, MPISERVE_FOREVER, NULL) == MPISERVE_OK);
  int wrong = 0;
  for (int i = 0; i < rows * COLUMNS; i++) wrong += y[i] != 3 * (1000.0 * rank + i);
  CHECK(wrong == 0);
}

static void work(mpiserve_service *service, int rank) {
  static double x[MAX_ROWS * COLUMNS], y[MAX_ROWS * COLUMNS];
  mpiserve_buffer buffer;
  CHECK(mpiserve_buffer_take(service, MAX_ROWS, &buffer) == MPISERVE_OK);
  for (int i = 0; i < ASKED; i++) {
    int rows = pick(2) ? 1 + pick(5) : 1 + pick(MAX_ROWS);
    ask(service, i % 3 ? x : buffer.inputs[0], i % 2 ? y : buffer.outputs[0], rank, rows);
  }
  CHECK(mpiserve_buffer_give(service, &buffer) == MPISERVE_OK);
}

static void simulate(mpiserve_session *session, int rank) {
  mpiserve_service *service;
  CHECK(mpiserve_service_find(session, "triple", &service) == MPISERVE_OK);
  if (rank)
    work(service, rank);
  else
    attack(session);
}

/* ---- the head ---------------------------------------------------------------------------------
 */

static void answer(mpiserve_session *session, const mpiserve_batch *batch) {
  int32_t clients[MAX_ROWS];
  const double *x = batch->inputs[0];
  double *y = batch->outputs[0];
  int64_t waiting;
  CHECK(batch->rows >= 1 && batch->rows <= MAX_ROWS);
  CHECK(mpiserve_queue_get(session, 0, &waiting) == MPISERVE_OK);
  CHECK(waiting <= HEAD * MSI_SLOTS * MAX_ROWS); /* so many have room in the lanes */
  CHECK(mpiserve_batch_clients(session, clients) == MPISERVE_OK);
  for (int64_t i = 0; i < batch->rows * COLUMNS; i++) {
    int client = clients[i / COLUMNS];
    CHECK(client == 0 || (int)x[i] / 1000 == client);
    y[i] = 3 * x[i];
  }
  if (clients[0] == 0 && batch->rows == MAX_ROWS)
    usleep(SLOW_US); /* others may ask more meanwhile */
  CHECK(mpiserve_batch_reply(session, (const void *const *)batch->outputs) == MPISERVE_OK);
}

static void serve(mpiserve_session *session) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, COLUMNS}};
  mpiserve_description d = {.name = "triple",
                            .n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {spec},
                            .outputs = {spec},
                            .max_batch_rows = MAX_ROWS,
                            .max_delay_ns = 100000};
  mpiserve_batch batch;
  mpiserve_change_request change;
  int code;
  CHECK(mpiserve_publish(session, 1, &d) == MPISERVE_OK);
  while ((code = mpiserve_batch_next(session, 1, &batch)) != MPISERVE_ECLOSED) {
    CHECK(code == MPISERVE_OK || code == MPISERVE_ETIMEOUT || code == MPISERVE_ECHANGE);
    if (code == MPISERVE_OK) answer(session, &batch);
    if (code != MPISERVE_ECHANGE) continue;
    CHECK(mpiserve_change_get(session, &change) == MPISERVE_OK && change.client == 0);
    CHECK(!mpiserve_change_reply(session, change.service, MPISERVE_ESTATE, "no other model"));
  }
}

int main(int argc, char **argv) {
  int provided, rank;
  mpiserve_session *session;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  state += (uint64_t)rank;
  alarm(LIMIT_S);
  if (mpiserve_open(MPI_COMM_WORLD, rank == HEAD, &session)) MPI_Abort(MPI_COMM_WORLD, 1);
  if (rank == HEAD)
    serve(session);
  else
    simulate(session, rank);
  CHECK(mpiserve_close(session) == MPISERVE_OK);
  MPI_Finalize();
  return check_result();
}
