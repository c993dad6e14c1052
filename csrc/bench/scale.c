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

enum { REHEARSALS = 64, FEATURES = 8, MAX_ROWS = 64 };

typedef struct stage {
  msi_world world;
  msi_window window;
  mpiserve_description description;
  msi_broker broker;
  uint32_t speaker;
  uint64_t *sent; /* by lane */
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

/* As a client does: slot first, then the bell, whose release makes the slot visible. */
static msi_slot *send(stage *stage, uint32_t lane, msi_kind kind, uint32_t rows) {
  msi_port *port = port_of(stage);
  uint64_t sequence = ++stage->sent[lane];
  msi_slot *slot = msi_port_slot(port, lane, sequence);
  slot->request.sequence = sequence;
  slot->request.kind = (uint32_t)kind;
  slot->request.rows = rows;
  slot->request.lease = slot->request.output_lease = -1; /* the rows ride in the slot */
  slot->request.row = slot->request.output_row = 0;
  atomic_store_explicit(&slot->request.cancelled, 0, memory_order_relaxed);
  for (uint32_t i = 0; i < rows * FEATURES; i++) ((float *)slot->input)[i] = (float)i;
  atomic_store_explicit((_Atomic uint8_t *)(port->memory + lane), (uint8_t)sequence,
                        memory_order_release);
  return slot;
}

static void check_reply(const stage *stage, msi_slot *slot) {
  uint64_t sequence = atomic_load_explicit(&slot->reply.sequence, memory_order_acquire);
  if (sequence == stage->sent[stage->speaker] && !slot->reply.code &&
      ((float *)slot->output)[FEATURES - 1] == FEATURES - 1)
    return;
  must(msi_error(MPISERVE_ESTATE, "the speaker got no good reply"));
}

static void ask(stage *stage) {
  mpiserve_batch batch;
  msi_slot *slot = send(stage, stage->speaker, MSI_INFER, 1);
  must(msi_broker_next(&stage->broker, 1.0, 1, &batch));
  must(msi_broker_reply(&stage->broker, batch.inputs));
  check_reply(stage, slot);
}

/* Not inlined: this is the function whose instructions are counted. */
__attribute__((noinline)) void speak(stage *stage, long rounds) {
  for (long i = 0; i < rounds; i++) ask(stage);
}

static void attach_all(stage *stage) {
  mpiserve_batch batch;
  for (uint32_t lane = 0; lane < port_of(stage)->layout.lanes; lane++)
    send(stage, lane, MSI_ATTACH, 0);
  /* A time-out: attaching makes no batch. */
  if (msi_broker_next(&stage->broker, 0, 1, &batch) != MPISERVE_ETIMEOUT)
    must(msi_error(MPISERVE_ESTATE, "attaching made a batch"));
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
  stage.speaker = (uint32_t)clients - 1; /* the last one: the head looks at all others first */
  stage.sent = calloc((size_t)clients, sizeof *stage.sent);
  if (!stage.sent) must(msi_error(MPISERVE_ENOMEM, "no memory for %d clients", clients));
  attach_all(&stage);
  for (int i = 0; i < REHEARSALS; i++) ask(&stage);
  speak(&stage, rounds);
  printf("%zu\n", held);
  return 0;
}
