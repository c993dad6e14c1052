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

static int wait_reply(msi_link *link) {
  msi_patience patience = msi_patience_for(2, 1); /* asleep soon */
  msi_wait wait = {0};
  msi_bed bed;
  int slot;
  msi_link_bed(link, link->sent, &bed);
  while ((slot = msi_link_reply(link)) < 0) msi_wait_pause(&wait, &patience, &bed);
  msi_wait_end(&wait, &bed);
  return slot;
}

static int take_reply(msi_link *link, const msi_cargo *cargo) {
  int slot = wait_reply(link), code = link->slots[slot].reply.code;
  if (cargo && !code) msi_link_outputs(link, slot, cargo);
  msi_link_release(link, slot);
  return code;
}

/* Every third request is given up: it ends with a result or as cancelled. */
static void ask(msi_link *link, int i) {
  double in[MAX_ROWS], out[MAX_ROWS] = {0};
  uint64_t sequence;
  int64_t rows = 1 + i % 40;
  for (int64_t k = 0; k < rows; k++) in[k] = link->lane * 1000 + i + (double)k;
  msi_cargo cargo = {.rows = rows, .input = {-1}, .output = {-1}, .inputs = {in}, .outputs = {out}};
  msi_link_infer(link, MSI_INFER, &cargo, NULL, &sequence);
  if (i % 3 == 0) msi_link_cancel(link, sequence);
  int code = take_reply(link, &cargo);
  wrong |= code && (i % 3 || code != MPISERVE_ECANCELLED);
  cancelled += code != 0;
  for (int64_t k = 0; k < rows && !code; k++) wrong |= out[k] != 2 * in[k];
}

static void *client(void *argument) {
  msi_link link = made_up_link(&made, 0, *(uint32_t *)argument);
  msi_link_send(&link, MSI_ATTACH, 0, -1, NULL, NULL);
  wrong |= take_reply(&link, NULL);
  for (int i = 0; i < ROUNDS; i++) ask(&link, i);
  msi_link_send(&link, MSI_LEAVE, 0, -1, NULL, NULL);
  wrong |= take_reply(&link, NULL);
  return NULL;
}

static int keep(msi_serving *serving, const mpiserve_batch *batch, held *all, int n) {
  mpiserve_ticket tickets[HELD];
  const double *in = batch->inputs[0];
  wrong |= msi_late_hold(serving, tickets) != 0;
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
  wrong |= msi_late_wanted(serving, &one->ticket, &wanted) != 0;
  for (int64_t k = 0; k < one->ticket.rows; k++) out[k] = 2 * one->in[k];
  if (wanted) wrong |= msi_late_reply(serving, &one->ticket, outputs) != 0;
  wrong |= msi_late_reply(serving, &one->ticket, outputs) != MPISERVE_ESTATE;
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
  mpiserve_spec spec = {"x", MPISERVE_FLOAT64, 1, {-1}};
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
  CHECK(made.serving.brokers[0].shelf.n == 0);
  CHECK(made.serving.brokers[0].counters.errors == cancelled);
  CHECK(made.serving.brokers[0].counters.requests == CLIENTS * ROUNDS);
  made_up_close(&made);
  return check_result();
}
