/* A random program over mpiserve.h: fuzz FIRST_SEED [SEEDS [SECONDS]]
 *
 * Each seed is a session of its own: its services, what its ranks are and all that they do
 * follow from the seed and the number of ranks. Only the time at which things happen does not,
 * so that a seed may have to be run some times until it fails again. FUZZ_TRACE=1 prints each
 * step, FUZZ_OPERATIONS is the number of operations of each client. */
#define _GNU_SOURCE
#include "fuzz_client.h"
#include "fuzz_head.h"
#include "fuzz_local.h"
#include "fuzz_seeds.h"

static void session(uint64_t seed) {
  world w = make_world(seed, me.ranks);
  w.operations = number_from("FUZZ_OPERATIONS", w.operations);
  pairs.sent = pairs.seen = pairs.dropped = 0;
  setenv("MPISERVE_CAPTURE", w.captured ? "on" : "off", 1);
  mpiserve_session *opened = open_session(w.roles[me.rank]);
  (w.roles[me.rank] == MPISERVE_INFERENCE ? serve : simulate)(&w, opened);
  compare_pairs(&w);
}

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], "local")) return serve_locally(argv);
  return run_seeds(argc, argv, session);
}
