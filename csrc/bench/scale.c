/* scale: what clients that are silent cost a head. Usage: scale CLIENTS ROUNDS
 *
 * A made-up world of one head and so many simulation ranks on one node, without MPI and in one
 * process. All clients attach; then one of them speaks, and this program is both it and the head.
 * The silent ones are not counted: they have missed batches until the census forgot them, as in a
 * job in which most ranks seldom ask. Instructions are counted of speak() alone:
 *
 *   valgrind --tool=callgrind --toggle-collect=speak scale 1024 1000
 *
 * Prints the bytes that the head holds for its lanes, slabs left out. */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/made_up.h"
#include "head/reply.h"

enum { REHEARSALS = 64, FEATURES = 8, MAX_ROWS = 64 };

static msi_made_up made;
static msi_endpoint speaker;

static void must(int code) {
  if (!code) return;
  fprintf(stderr, "scale: %s\n", mpiserve_last_error());
  exit(1);
}

static void make_description(mpiserve_description *description) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT32, .ndim = 2, .shape = {-1, FEATURES}};
  snprintf(description->name, sizeof description->name, "scale");
  description->n_inputs = description->n_outputs = 1;
  description->inputs[0] = description->outputs[0] = spec;
  description->max_batch_rows = MAX_ROWS;
  description->max_delay_ns = 0; /* nobody waits for clients that are silent */
}

static void ask(void) {
  static float in[FEATURES] = {1, 2, 3}, out[FEATURES];
  mpiserve_batch batch;
  uint64_t sequence;
  msi_payload payload = {
      .rows = 1, .input.lease = -1, .output.lease = -1, .inputs = {in}, .outputs = {out}};
  must(msi_endpoint_infer(&speaker, MSI_INFER, &payload, NULL, &sequence));
  must(msi_serving_next(&made.serving, 1.0, &batch));
  must(msi_reply_all(made.serving.brokers, batch.inputs));
  int slot = msi_endpoint_reply(&speaker);
  if (slot < 0) must(msi_error(MPISERVE_ESTATE, "the speaker got no reply"));
  must(msi_endpoint_outputs(&speaker, slot, &payload, &speaker.layout.outputs));
  msi_endpoint_release(&speaker, slot);
  if (memcmp(in, out, sizeof in)) must(msi_error(MPISERVE_ESTATE, "the speaker got a wrong reply"));
}

/* Not inlined: this is the function whose instructions are counted. */
__attribute__((noinline)) void speak(long rounds) {
  for (long i = 0; i < rounds; i++) ask();
}

/* The speaker is the last one: the head looks at all others first. */
static void attach_all(uint32_t clients) {
  mpiserve_batch batch;
  for (uint32_t lane = 0; lane < clients; lane++) {
    speaker = made_up_endpoint(&made, 0, lane);
    must(msi_endpoint_send(&speaker, MSI_ATTACH, 0, -1, NULL, NULL));
  }
  /* A time-out: attaching makes no batch. */
  if (msi_serving_next(&made.serving, 0, &batch) != MPISERVE_ETIMEOUT)
    must(msi_error(MPISERVE_ESTATE, "attaching made a batch"));
  msi_endpoint_release(&speaker, msi_endpoint_reply(&speaker));
}

static size_t heap(void) {
  struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

int main(int argc, char **argv) {
  mpiserve_description description = {0};
  int clients = argc > 1 ? atoi(argv[1]) : 0;
  long rounds = argc > 2 ? atol(argv[2]) : 0;
  if (clients < 1 || rounds < 1) {
    fprintf(stderr, "usage: scale CLIENTS ROUNDS\n");
    return 2;
  }
  make_description(&description);
  size_t before = heap();
  must(made_up_open(&made, clients, 1, &description));
  const msi_layout *layout = &made.serving.brokers->inboxes[MPISERVE_SHARED].layout;
  size_t held = heap() - before + msi_slot_at(layout, (uint32_t)clients, 1);
  attach_all((uint32_t)clients);
  for (int i = 0; i < REHEARSALS; i++) ask();
  speak(rounds);
  printf("%zu\n", held);
  return 0;
}
