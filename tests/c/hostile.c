/* A hostile client: hostile FIRST_SEED [SEEDS [SECONDS]]
 *
 * Each seed is a session in which one simulation rank, or a guest, writes what it likes into its
 * own lane, at any time: headers, payloads, doorbells, sequence numbers, leases, rows, deadlines,
 * cancellations, lengths of texts. The head neither crashes nor hangs, and the other clients get
 * their answers; so it is built with sanitizers. What the hostile rank may not do is what everybody
 * is to believe: say that it leaves while others go on, and keep all rows for itself. */
#define _GNU_SOURCE
#include "base/ring.h"
#include "hostile_client.h"

enum { MAX_REQUESTS = 4, MAX_COLUMNS = 40, MAX_TICKETS = 64, RING_BYTES = 1 << 20 };

/* ---- the world ------------------------------------------------------------------------------ */

typedef struct plan {
  int head, hostile, fails; /* fails: it ends with a failure whose text is odd */
  int guest, guest_role;    /* guest: a rank, which may be the hostile one; -1: none */
  int free;                 /* the columns are */
  int columns, asked, holds, early, slow, captured;
  mpiserve_description d;
} plan;

/* Its requests have columns of their own, and share batches. */
static void make_ragged(plan *p) {
  p->free = 1;
  p->d.rows = MPISERVE_RAGGED;
  p->d.overwrites = 0;
  mpiserve_spec spec = {
      .name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}, .max_shape = {p->columns}};
  p->d.inputs[0] = p->d.outputs[0] = spec;
}

/* One of the clients is a gateway or a trainer; a simulation rank is left beside it. A guest cannot
 * fail. Its dice are its own, so that all else of a seed is the same without it. */
static void make_guest(plan *p, uint64_t seed) {
  dice d = {mix(~seed)};
  p->guest = -1;
  if (me.ranks < 3 || chance(&d, 40)) return;
  int is_another = chance(&d, 40);
  p->guest_role = chance(&d, 50) ? MPISERVE_GATEWAY : MPISERVE_TRAINER;
  p->guest = p->hostile;
  while (is_another && (p->guest == p->hostile || p->guest == p->head))
    p->guest = (p->guest + 1) % me.ranks;
  if (!is_another) p->fails = 0;
}

static plan make_plan(uint64_t seed) {
  dice d = {mix(seed)};
  plan p = {
      .columns = 1 + pick(&d, MAX_COLUMNS), .asked = 60 + pick(&d, 200), .fails = chance(&d, 25)};
  p.head = pick(&d, me.ranks);
  p.hostile = (p.head + 1 + pick(&d, me.ranks - 1)) % me.ranks;
  p.holds = (int)ANY_OF(&d, 0, 0, 30);
  p.early = (int)ANY_OF(&d, 0, 30);
  p.slow = (int)ANY_OF(&d, 0, 3, 20);
  mpiserve_spec spec = {
      .name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, p.columns}};
  p.free = chance(&d, 30);
  if (p.free) spec.max_shape[1] = p.columns;
  if (p.free) spec.shape[1] = -1;
  p.d = (mpiserve_description){.name = "triple",
                               .n_inputs = 1,
                               .n_outputs = 1,
                               .inputs = {spec},
                               .outputs = {spec},
                               .overwrites = !p.free && chance(&d, 20),
                               .max_batch_rows = 1 + pick(&d, HOSTILE_ROWS),
                               .max_delay_ns = (int64_t)ANY_OF(&d, 0, 1e5, 1e6)};
  if (chance(&d, 20)) {
    p.free = 0;
    p.d.rows = MPISERVE_NO_ROWS;
    p.d.inputs[0].ndim = p.d.outputs[0].ndim = 1;
    p.d.inputs[0].shape[0] = p.d.outputs[0].shape[0] = p.columns;
    p.d.max_batch_rows = 1;
  }
  if (!p.d.rows && chance(&d, 35)) make_ragged(&p);
  p.d.allow_empty = chance(&d, 40) && (p.d.rows == MPISERVE_RAGGED || (!p.d.rows && !p.free));
  p.d.max_queue_rows = chance(&d, 50) ? 0 : p.d.max_batch_rows * (1 + pick(&d, 3));
  p.d.on_full = MPISERVE_WAIT;
  p.d.reproducible = !p.d.max_queue_rows && p.d.max_delay_ns && chance(&d, 25);
  p.captured = !p.free && chance(&d, 50);
  int keeps = !p.d.rows && !p.free && !p.d.overwrites && !p.d.reproducible;
  if (keeps && chance(&d, 50)) p.d.cache_rows = 1 + pick(&d, 3 * HOSTILE_ROWS);
  make_guest(&p, seed);
  return p;
}

/* ---- the other clients ---------------------------------------------------------------------- */

typedef struct query {
  double number, *x, *y;
  int64_t rows, columns;
  mpiserve_request request;
} query;

typedef struct asker {
  const plan *p;
  mpiserve_session *session;
  mpiserve_service *service;
  dice d;
  double number;
  double x[MAX_REQUESTS][HOSTILE_ROWS * MAX_COLUMNS], y[MAX_REQUESTS][HOSTILE_ROWS * MAX_COLUMNS];
} asker;

/* Each value tells whose it is, and of which request. */
static double value_of(int rank, double number, int64_t i) {
  return rank * 1e9 + number * 1e4 + (double)(i % 10000);
}

static mpiserve_tensor tensor_of(const plan *p, const query *q) {
  if (p->d.rows >= MPISERVE_NO_ROWS)
    return (mpiserve_tensor){NULL, q->x, MPISERVE_FLOAT64, 1, {q->columns}};
  return (mpiserve_tensor){NULL, q->x, MPISERVE_FLOAT64, 2, {q->rows, q->columns}};
}

static void submit(asker *a, query *q) {
  mpiserve_tensor in = tensor_of(a->p, q), out = in;
  out.data = q->y;
  memset(q->y, 0, (size_t)(q->rows * q->columns) * sizeof *q->y);
  for (int64_t i = 0; i < q->rows * q->columns; i++) q->x[i] = value_of(me.rank, q->number, i);
  must(mpiserve_submit(a->service, 1, &in, 1, &out, NULL, &q->request), "submit");
}

static void wait_for(asker *a, query *q) {
  int64_t bad = 0;
  doing("wait for %lld rows", (long long)q->rows);
  int code = mpiserve_wait(a->session, &q->request, MPISERVE_FOREVER, NULL);
  if (code == MPISERVE_EPEER && a->p->fails) return;
  must(code, "wait");
  for (int64_t i = 0; i < q->rows * q->columns && !code; i++)
    bad += q->y[i] != 3 * value_of(me.rank, q->number, i);
  if (bad) wrong("%lld values of %lld rows are wrong", (long long)bad, (long long)q->rows);
}

/* Where answers are kept, numbers come again. */
static double next_number(asker *a) {
  a->number++;
  return a->p->d.cache_rows ? pick(&a->d, 5) : a->number;
}

/* Some at a time, the first one now and then in place. */
static int64_t some_of(asker *a, int64_t most) {
  int ragged = a->p->d.rows == MPISERVE_RAGGED;
  if (a->p->d.allow_empty && !ragged && chance(&a->d, 20)) return 0;
  return ragged ? 1 : log_pick(&a->d, (int)most);
}

static int64_t some_columns(asker *a) {
  int least = !(a->p->d.rows == MPISERVE_RAGGED && a->p->d.allow_empty);
  return a->p->free ? least + pick(&a->d, a->p->columns + !least) : a->p->columns;
}

static void ask(asker *a, const mpiserve_buffer *buffer) {
  query queries[MAX_REQUESTS];
  int n = 1 + pick(&a->d, MAX_REQUESTS);
  for (int i = 0; i < n; i++) {
    int in_place = !i && buffer->id && chance(&a->d, 50);
    queries[i] = (query){.number = next_number(a),
                         .rows = some_of(a, a->p->d.max_batch_rows),
                         .columns = some_columns(a),
                         .x = in_place ? buffer->inputs[0] : a->x[i],
                         .y = in_place ? buffer->outputs[0] : a->y[i]};
    submit(a, &queries[i]);
  }
  for (int i = 0; i < n; i++) wait_for(a, &queries[i]);
}

/* A guest must leave within 5 s when all others have left. */
static int has_time(const asker *a) {
  mpiserve_replica_state state;
  if (me.rank != a->p->guest) return 1;
  must(mpiserve_service_state_get(a->session, "triple", 0, &state), "service_state_get");
  return state.state != MPISERVE_GONE && state.state != MPISERVE_FAILED;
}

static void work(const plan *p, mpiserve_session *session, mpiserve_service *service) {
  static asker a;
  mpiserve_buffer buffer = {0};
  a = (asker){.p = p, .session = session, .service = service, .number = 1};
  a.d = (dice){mix(me.seed) + (uint64_t)me.rank};
  int64_t rows = p->d.rows == MPISERVE_RAGGED ? 1 : p->d.max_batch_rows;
  int code = mpiserve_buffer_take(service, rows, &buffer);
  if (code && code != MPISERVE_ENOMEM) must(code, "buffer_take");
  for (int i = 0; i < p->asked && has_time(&a); i++) ask(&a, &buffer);
  if (!code) must(mpiserve_buffer_give(service, &buffer), "buffer_give");
}

/* The head would leave 5 s after the others, whatever a guest is at. */
static void wait_for_guest(MPI_Comm clients) {
  doing("wait until the hostile guest has done all it wants");
  MPI_Barrier(clients);
}

static void simulate(const plan *p, mpiserve_session *session, MPI_Comm clients) {
  mpiserve_service *service;
  must(mpiserve_service_find(session, "triple", &service), "service_find");
  if (me.rank == p->hostile)
    attack(session, p->d.max_batch_rows, p->columns, p->fails);
  else
    work(p, session, service);
  if (p->hostile == p->guest) wait_for_guest(clients);
}

/* ---- the head ------------------------------------------------------------------------------- */

typedef struct head {
  const plan *p;
  mpiserve_session *session;
  dice d;
  int64_t stride, columns[HOSTILE_ROWS]; /* from row to row of the batch, and of each row */
  int n;
  int64_t held_stride[MAX_TICKETS], held_columns[MAX_TICKETS];
  mpiserve_ticket tickets[MAX_TICKETS];
  double *rows[MAX_TICKETS];
} head;

static int is_ragged(const head *h) { return h->p->d.rows == MPISERVE_RAGGED; }

/* The columns of each row, which are the same unless the batch is ragged. */
static void look_at_shapes(head *h, const mpiserve_batch *batch) {
  static int64_t shapes[HOSTILE_ROWS][MPISERVE_MAX_DIMS];
  int has_rows = h->p->d.rows < MPISERVE_NO_ROWS, least = !h->p->d.allow_empty || !is_ragged(h);
  must(mpiserve_batch_shapes_get(h->session, shapes[0]), "batch_shapes_get");
  if (has_rows && shapes[0][0] != batch->rows)
    wrong("%lld rows, and the batch has %lld", (long long)shapes[0][0], (long long)batch->rows);
  for (int64_t r = 0; r < batch->rows; r++) {
    h->columns[r] = shapes[is_ragged(h) ? r : 0][has_rows];
    if (h->columns[r] < least || h->columns[r] > h->p->columns)
      wrong("row %lld has %lld columns", (long long)r, (long long)h->columns[r]);
  }
  h->stride = is_ragged(h) ? h->p->columns : h->columns[0];
}

static void look_at(head *h, const mpiserve_batch *batch) {
  int32_t clients[HOSTILE_ROWS];
  const double *x = batch->inputs[0];
  int64_t waiting, limit = (int64_t)(me.ranks - 1) * MSI_SLOTS * h->p->d.max_batch_rows;
  if (batch->rows < 1 || batch->rows > h->p->d.max_batch_rows)
    wrong("a batch of %lld rows", (long long)batch->rows);
  look_at_shapes(h, batch);
  if (h->p->d.rows == MPISERVE_NO_ROWS && batch->requests != 1)
    wrong("a batch of %d requests, which have no rows", batch->requests);
  if (is_ragged(h) && batch->requests != batch->rows)
    wrong("%d requests are %lld rows", batch->requests, (long long)batch->rows);
  must(mpiserve_queue_get(h->session, 0, &waiting), "queue_get");
  if (waiting > limit) wrong("%lld rows wait: lanes have no room for them", (long long)waiting);
  must(mpiserve_batch_clients(h->session, clients), "batch_clients");
  for (int64_t r = 0; r < batch->rows; r++)
    for (int64_t i = 0; i < h->columns[r] && clients[r] != h->p->hostile; i++)
      if ((int)(x[r * h->stride + i] / 1e9) != clients[r])
        wrong("value %g of a row of rank %d", x[r * h->stride + i], clients[r]);
}

static void tell_shapes(const head *h, int64_t rows) {
  static int64_t shapes[HOSTILE_ROWS][MPISERVE_MAX_DIMS];
  for (int64_t r = 0; r < rows; r++) {
    shapes[r][0] = h->p->d.rows >= MPISERVE_NO_ROWS ? h->columns[r] : 0;
    shapes[r][1] = h->columns[r];
  }
  must(mpiserve_result_shapes_set(h->session, 0, is_ragged(h) ? rows : 1, shapes[0]),
       "result_shapes_set");
}

static void compute(const head *h, const double *x, double *y, int64_t from, int64_t to) {
  for (int64_t r = from; r < to; r++)
    for (int64_t i = 0; i < h->columns[r]; i++) y[r * h->stride + i] = 3 * x[r * h->stride + i];
}

static void hold(head *h, const mpiserve_batch *batch) {
  mpiserve_ticket *tickets = &h->tickets[h->n];
  const double *x = batch->inputs[0];
  double *copy[MAX_TICKETS];
  size_t row = (size_t)h->p->columns;
  for (int i = 0; i < batch->requests; i++) copy[i] = malloc((size_t)batch->rows * row * sizeof *x);
  for (int i = 0; i < batch->requests; i++)
    memcpy(copy[i], x, (size_t)batch->rows * row * sizeof *x);
  must(mpiserve_batch_hold(h->session, tickets), "batch_hold");
  for (int i = 0; i < batch->requests; i++) {
    h->held_stride[h->n] = h->stride;
    h->held_columns[h->n] = h->columns[tickets[i].row];
    h->rows[h->n++] = copy[i];
  }
}

static void end_held(head *h) {
  mpiserve_ticket *ticket = &h->tickets[--h->n];
  double *x = h->rows[h->n] + ticket->row * h->held_stride[h->n];
  const void *outputs[] = {x};
  int wanted;
  must(mpiserve_ticket_wanted(h->session, ticket, &wanted), "ticket_wanted");
  h->stride = h->held_stride[h->n];
  for (int64_t r = 0; r < ticket->rows; r++) h->columns[r] = h->held_columns[h->n];
  if (wanted) tell_shapes(h, ticket->rows);
  if (wanted) compute(h, x, x, 0, ticket->rows);
  if (wanted) must(mpiserve_ticket_reply(h->session, ticket, outputs), "ticket_reply");
  free(h->rows[h->n]);
}

static void answer(head *h, const mpiserve_batch *batch) {
  doing("answer %lld rows", (long long)batch->rows);
  look_at(h, batch);
  if (chance(&h->d, h->p->slow)) usleep((unsigned)pick(&h->d, 1000));
  if (h->n + batch->requests <= MAX_TICKETS && chance(&h->d, h->p->holds)) {
    hold(h, batch);
    return;
  }
  int64_t first = chance(&h->d, h->p->early) ? pick(&h->d, (int)batch->rows) : 0;
  const double *x = batch->inputs[0];
  double *y = batch->outputs[0];
  tell_shapes(h, batch->rows);
  compute(h, x, y, 0, first);
  const void *const *outputs = (const void *const *)batch->outputs;
  if (first) must(mpiserve_batch_reply_rows(h->session, first, outputs), "reply_rows");
  compute(h, x, y, first, batch->rows);
  must(mpiserve_batch_reply(h->session, outputs), "batch_reply");
}

static void refuse_change(head *h) {
  mpiserve_change_request change;
  must(mpiserve_change_get(h->session, &change), "change_get");
  if (change.client != h->p->hostile) wrong("rank %d asks for another model", change.client);
  must(mpiserve_change_reply(h->session, change.service, MPISERVE_ESTATE, "there is no other"),
       "change_reply");
}

/* ---- the capture ---------------------------------------------------------------------------- */

static _Alignas(MSI_RING_LINE) uint8_t ring_memory[RING_BYTES];

static void capture(const head *h, msi_ring *ring) {
  mpiserve_capture wanted = {.memory = ring_memory, .bytes = RING_BYTES, .reader = -1, .share = 1};
  memset(ring_memory, 0, sizeof ring_memory);
  msi_ring_open(ring, ring_memory, RING_BYTES);
  must(mpiserve_capture_set(h->session, 0, &wanted), "capture_set");
}

/* What the others asked is right in it; what the hostile one records is anything, but fits. */
static void look_at_record(const head *h, const msi_record *r) {
  int64_t values = (int64_t)r->rows * h->p->columns;
  const double *x = (const double *)(r + 1), *y = x + values;
  if (r->rows > h->p->d.max_batch_rows || (r->source && r->rank != h->p->hostile))
    wrong("rank %d has recorded %u rows", r->rank, r->rows);
  for (int64_t i = 0; i < values && r->rank != h->p->hostile; i++)
    if (y[i] != 3 * x[i] && !(h->p->d.overwrites && y[i] == x[i]))
      wrong("a captured answer of rank %d is %g", r->rank, y[i]);
}

static void drain(const head *h, const msi_ring *ring) {
  const msi_record *r;
  while (h->p->captured && (r = msi_ring_next(ring))) {
    if (r->rows) look_at_record(h, r);
    msi_ring_take(ring, r);
  }
}

static void serve(const plan *p, mpiserve_session *session) {
  static head h;
  mpiserve_batch batch;
  msi_ring ring;
  int code = MPISERVE_OK;
  h = (head){.p = p, .session = session, .d = {mix(me.seed) + (uint64_t)me.rank}};
  must(mpiserve_publish(session, 1, &p->d), "publish");
  if (p->captured) capture(&h, &ring);
  while (code != MPISERVE_ECLOSED && me.wrong < 100) {
    doing("batch_next");
    code = mpiserve_batch_next(session, h.n ? 0 : 1, &batch);
    if (code == MPISERVE_OK)
      answer(&h, &batch);
    else if (code == MPISERVE_ECHANGE)
      refuse_change(&h);
    else if (code != MPISERVE_ETIMEOUT && code != MPISERVE_ECLOSED)
      must(code, "batch_next");
    while (h.n && (code || chance(&h.d, 30))) end_held(&h);
    drain(&h, &ring);
  }
}

static void session(uint64_t seed) {
  plan p = make_plan(seed);
  int is_head = me.rank == p.head;
  MPI_Comm clients;
  MPI_Comm_split(MPI_COMM_WORLD, is_head ? MPI_UNDEFINED : 0, me.rank, &clients);
  mpiserve_session *opened = open_session(is_head              ? MPISERVE_INFERENCE
                                          : me.rank == p.guest ? p.guest_role
                                                               : MPISERVE_SIMULATION);
  if (is_head)
    serve(&p, opened);
  else
    simulate(&p, opened, clients);
  doing("close");
  must(mpiserve_close(opened), "close");
  if (!is_head) MPI_Comm_free(&clients);
}

int main(int argc, char **argv) { return run_seeds(argc, argv, session); }
