/* scale: what clients that are silent cost a head. Usage: scale CLIENTS ROUNDS
 *
 * A made-up world of one head and so many simulation ranks on one node, without MPI and in one
 * process. All clients attach; then one of them speaks, and this program is both it and the head.
 * The silent ones rest: they have missed batches until the census forgot them, as in a job in
 * which most ranks seldom ask. Instructions are counted of speak() alone:
 *
 *   valgrind --tool=callgrind --toggle-collect=speak scale 1024 1000
 *
 * Prints the bytes that the head holds for its lanes, slabs left out. */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker.h"
#include "error.h"
#include "link.h"

enum { REHEARSALS = 64, FEATURES = 8, MAX_ROWS = 64 };

typedef struct stage {
  msi_world world;
  msi_window window;
  mpiserve_description description;
  msi_broker broker;
  msi_link speaker;
} stage;

static void must(int code) {
  if (!code) return;
  fprintf(stderr, "scale: %s\n", mpiserve_last_error());
  exit(1);
}

/* The head is the last rank; every rank is on the node of rank 0. */
static void make_world(msi_world *world, int clients) {
  world->size = clients + 1;
  world->rank = clients;
  world->role = MPISERVE_INFERENCE;
  world->n_simulation = clients;
  world->roles = calloc((size_t)world->size, sizeof *world->roles);
  world->nodes = calloc((size_t)world->size, sizeof *world->nodes);
  world->patience = msi_patience_for(2, 2);
  if (!world->roles || !world->nodes) must(msi_error(MPISERVE_ENOMEM, "no memory for a world"));
  for (int r = 0; r < clients; r++) world->roles[r] = MPISERVE_SIMULATION;
  world->roles[clients] = MPISERVE_INFERENCE;
}

static void make_description(mpiserve_description *description) {
  mpiserve_spec spec = {"x", MPISERVE_FLOAT32, 2, {-1, FEATURES}};
  snprintf(description->name, sizeof description->name, "scale");
  description->n_inputs = description->n_outputs = 1;
  description->inputs[0] = description->outputs[0] = spec;
  description->max_batch_rows = MAX_ROWS;
  description->max_delay_ns = 0; /* nobody waits for clients that are silent */
}

static void open_stage(stage *stage, int clients) {
  size_t bytes[MSI_TRANSPORTS];
  make_world(&stage->world, clients);
  make_description(&stage->description);
  must(msi_broker_open(&stage->broker, &stage->world, &stage->description, bytes));
  stage->window.world = &stage->world;
  stage->window.memory[MPISERVE_SHARED] = aligned_alloc(4096, (bytes[0] + 4095) / 4096 * 4096);
  if (!stage->window.memory[MPISERVE_SHARED])
    must(msi_error(MPISERVE_ENOMEM, "no memory for a window of %zu bytes", bytes[0]));
  must(msi_broker_attach(&stage->broker, &stage->window));
}

static msi_port *port_of(stage *stage) { return &stage->broker.ports[MPISERVE_SHARED]; }

/* The end of a lane that a client on this node has. */
static msi_link link_to(stage *stage, uint32_t lane) {
  const msi_port *port = port_of(stage);
  return (msi_link){.window = &stage->window,
                    .head = stage->world.rank,
                    .transport = MPISERVE_SHARED,
                    .lane = lane,
                    .layout = port->layout,
                    .memory = port->memory,
                    .slots = msi_port_slot(port, lane, 1)};
}

static void ask(stage *stage) {
  static float in[FEATURES] = {1, 2, 3}, out[FEATURES];
  mpiserve_batch batch;
  uint64_t sequence;
  msi_cargo cargo = {.rows = 1, .input = {-1}, .output = {-1}, .inputs = {in}, .outputs = {out}};
  must(msi_link_infer(&stage->speaker, &cargo, NULL, &sequence));
  must(msi_broker_next(&stage->broker, 1.0, &batch));
  must(msi_broker_reply(&stage->broker, batch.inputs));
  int slot = msi_link_reply(&stage->speaker);
  if (slot < 0) must(msi_error(MPISERVE_ESTATE, "the speaker got no reply"));
  must(msi_link_outputs(&stage->speaker, slot, &cargo));
  msi_link_release(&stage->speaker, slot);
  if (memcmp(in, out, sizeof in)) must(msi_error(MPISERVE_ESTATE, "the speaker got a wrong reply"));
}

/* Not inlined: this is the function whose instructions are counted. */
__attribute__((noinline)) void speak(stage *stage, long rounds) {
  for (long i = 0; i < rounds; i++) ask(stage);
}

/* The speaker is the last one: the head looks at all others first. */
static void attach_all(stage *stage) {
  mpiserve_batch batch;
  for (uint32_t lane = 0; lane < port_of(stage)->layout.lanes; lane++) {
    stage->speaker = link_to(stage, lane);
    must(msi_link_send(&stage->speaker, MSI_ATTACH, 0, -1, NULL, NULL));
  }
  /* A time-out: attaching makes no batch. */
  if (msi_broker_next(&stage->broker, 0, &batch) != MPISERVE_ETIMEOUT)
    must(msi_error(MPISERVE_ESTATE, "attaching made a batch"));
  msi_link_release(&stage->speaker, msi_link_reply(&stage->speaker));
}

static size_t heap(void) {
  struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

int main(int argc, char **argv) {
  static stage stage;
  int clients = argc > 1 ? atoi(argv[1]) : 0;
  long rounds = argc > 2 ? atol(argv[2]) : 0;
  if (clients < 1 || rounds < 1) {
    fprintf(stderr, "usage: scale CLIENTS ROUNDS\n");
    return 2;
  }
  size_t before = heap();
  open_stage(&stage, clients);
  size_t lanes = msi_slot_at(&port_of(&stage)->layout, (uint32_t)clients, 1);
  size_t window = malloc_usable_size(stage.window.memory[MPISERVE_SHARED]);
  size_t held = heap() - before - window + lanes;
  attach_all(&stage);
  for (int i = 0; i < REHEARSALS; i++) ask(&stage);
  speak(&stage, rounds);
  printf("%zu\n", held);
  return 0;
}
