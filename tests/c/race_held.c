/* A head that holds requests and answers them one by one, in another order, and its clients as
 * threads of one process, some of whose requests are cancelled: for the thread sanitizer. */
#include <string.h>

#include "check.h"
#include "head/tickets.h"
#include "race.h"

enum { CLIENTS = 3, ROUNDS = 300, MAX_ROWS = 60, HELD = 64 };

static msi_made_up made;
static _Atomic int wrong, cancelled;

typedef struct held {
  mpiserve_ticket ticket;
  double in[MAX_ROWS];
} held;

static int wait_reply(msi_endpoint *endpoint) {
  msi_backoff backoff = msi_backoff_for(2, 1); /* asleep soon */
  msi_wait wait = {0};
  msi_wait_address address;
  int slot;
  msi_endpoint_wait_address(endpoint, endpoint->sent, &address);
  while ((slot = msi_endpoint_reply(endpoint)) < 0) msi_wait_pause(&wait, &backoff, &address);
  msi_wait_end(&wait, &address);
  return slot;
}

static int take_reply(msi_endpoint *endpoint, const msi_payload *payload) {
  int slot = wait_reply(endpoint), code = endpoint->path.slots[slot].reply.code;
  if (payload && !code) msi_endpoint_outputs(endpoint, slot, payload, &endpoint->layout.outputs);
  msi_endpoint_release(endpoint, slot);
  return code;
}

/* Every third request is given up: it ends with a result or as cancelled. */
static void ask(msi_endpoint *endpoint, int i) {
  double in[MAX_ROWS], out[MAX_ROWS] = {0};
  uint64_t sequence;
  int64_t rows = 1 + i % 40;
  for (int64_t k = 0; k < rows; k++)
    in[k] = (double)endpoint->path.doorbell_at * 1000 + i + (double)k;
  msi_payload payload = {
      .rows = rows, .input = {-1}, .output = {-1}, .inputs = {in}, .outputs = {out}};
  msi_endpoint_infer(endpoint, MSI_INFER, &payload, NULL, &sequence);
  if (i % 3 == 0) msi_endpoint_cancel(endpoint, sequence);
  int code = take_reply(endpoint, &payload);
  wrong |= code && (i % 3 || code != MPISERVE_ECANCELLED);
  cancelled += code != 0;
  for (int64_t k = 0; k < rows && !code; k++) wrong |= out[k] != 2 * in[k];
}

static void *client(void *argument) {
  msi_endpoint endpoint = made_up_endpoint(&made, 0, *(uint32_t *)argument);
  msi_endpoint_send(&endpoint, MSI_ATTACH, 0, -1, NULL, NULL);
  wrong |= take_reply(&endpoint, NULL);
  for (int i = 0; i < ROUNDS; i++) ask(&endpoint, i);
  msi_endpoint_send(&endpoint, MSI_LEAVE, 0, -1, NULL, NULL);
  wrong |= take_reply(&endpoint, NULL);
  return NULL;
}

static int keep(msi_serving *serving, const mpiserve_batch *batch, held *all, int n) {
  mpiserve_ticket tickets[HELD];
  const double *in = batch->inputs[0];
  wrong |= msi_tickets_hold(serving, tickets) != 0;
  for (int i = 0; i < batch->requests; i++, n++) {
    all[n].ticket = tickets[i];
    memcpy(all[n].in, in + tickets[i].row, (size_t)tickets[i].rows * sizeof *in);
  }
  return n;
}

/* Answers one, unless nobody waits for it. */
static void answer(msi_serving *serving, held *one) {
  double out[MAX_ROWS];
  const void *outputs[] = {out};
  int wanted;
  wrong |= msi_tickets_wanted(serving, &one->ticket, &wanted) != 0;
  for (int64_t k = 0; k < one->ticket.rows; k++) out[k] = 2 * one->in[k];
  if (wanted) wrong |= msi_tickets_reply(serving, &one->ticket, outputs) != 0;
  wrong |= msi_tickets_reply(serving, &one->ticket, outputs) != MPISERVE_ESTATE;
}

static void *head(void *argument) {
  static held all[HELD];
  msi_serving *serving = argument;
  mpiserve_batch batch;
  int n = 0, code = MPISERVE_OK;
  while (code != MPISERVE_ECLOSED) {
    code = msi_serving_next(serving, n ? 0 : 60, &batch);
    wrong |= code && code != MPISERVE_ECLOSED && code != MPISERVE_ETIMEOUT;
    if (!code) n = keep(serving, &batch, all, n);
    if (n > 1 || (n && code == MPISERVE_ETIMEOUT)) answer(serving, &all[--n]);
    wrong |= msi_serving_poll(serving) != 0;
  }
  wrong |= n != 0;
  return NULL;
}

int main(void) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description description = {.name = "twice",
                                      .n_inputs = 1,
                                      .n_outputs = 1,
                                      .inputs = {spec},
                                      .outputs = {spec},
                                      .max_batch_rows = CLIENTS * MAX_ROWS,
                                      .max_delay_ns = 100000};
  CHECK(!made_up_open(&made, CLIENTS, 1, &description));
  race(&made, CLIENTS, head, client);
  CHECK(!wrong);
  CHECK(made.serving.brokers[0].tickets.n == 0);
  CHECK(made.serving.brokers[0].counters.errors == cancelled);
  CHECK(made.serving.brokers[0].counters.requests == CLIENTS * ROUNDS);
  made_up_close(&made);
  return check_result();
}
