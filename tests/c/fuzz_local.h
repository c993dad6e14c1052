/* fuzz_local: a local model of the random program, in a process of its own: fuzz local SEED RANKS
 * SERVICE. It answers as the first generation does, or fails, dies, hangs, and writes what it likes
 * into its half of the memory. */
#ifndef FUZZ_LOCAL_H
#define FUZZ_LOCAL_H

#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/handover.h"
#include "base/program.h"
#include "fuzz_world.h"

enum { CALLS = MSI_PROGRAM_FIRST_FILE, TENSORS, LIFELINE, TEXT_BYTES = 1024 };

typedef struct local_calls {
  msi_handover handover;
  char text[TEXT_BYTES];
} local_calls;

typedef struct local_model {
  const service *s;
  local_calls *calls;
  uint8_t *tensors;
  msi_handover_side side;
  dice d;
} local_model;

static void *map_file(int fd) {
  struct stat file;
  if (fstat(fd, &file)) _exit(4);
  void *memory = mmap(NULL, (size_t)file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) _exit(4);
  return memory;
}

static int is_alone(int ms) {
  struct pollfd end = {LIFELINE, POLLIN, 0};
  return poll(&end, 1, ms) > 0;
}

static void compute_locally(local_model *m) {
  const msi_place *place = m->calls->handover.place;
  uint8_t in[MAX_ROW_BYTES], out[MAX_ROW_BYTES];
  void *inputs[MAX_SIDE], *outputs[MAX_SIDE];
  for (int i = 0; i < m->s->in.n; i++) inputs[i] = m->tensors + place[i].offset;
  for (int i = 0; i < m->s->out.n; i++) outputs[i] = m->tensors + place[m->s->in.n + i].offset;
  for (int64_t i = 0; i < m->calls->handover.rows; i++) {
    row_get(&m->s->in, inputs, i, in);
    row_answer(m->s, in, 1, out);
    row_put(&m->s->out, outputs, i, out);
  }
}

/* Its text has no end. */
static int fail_locally(local_model *m) {
  static const char begin[] = "fuzz: a local model";
  memset(m->calls->text, 'x', TEXT_BYTES);
  memcpy(m->calls->text, begin, sizeof begin - 1);
  return 1 + pick(&m->d, 100);
}

/* What the parent does not trust: it is told when it has to look, and where. */
static void write_wildly(local_model *m) {
  msi_handover *shared = &m->calls->handover;
  atomic_store(&shared->rows_done, (int64_t)roll(&m->d));
  atomic_store(&shared->taken, (uint32_t)roll(&m->d));
  for (int i = pick(&m->d, 4); i > 0; i--) msi_handover_rows(&m->side, (int64_t)roll(&m->d));
}

/* Says for ever that it is at work. */
static void report_until_alone(local_model *m) {
  while (!is_alone(0)) msi_handover_rows(&m->side, (int64_t)roll(&m->d));
  _exit(0);
}

static void answer_locally(local_model *m) {
  if (chance(&m->d, 3)) _exit(3);
  if (chance(&m->d, 3) && is_alone(-1)) _exit(0);
  if (chance(&m->d, 2)) report_until_alone(m);
  if (chance(&m->d, 30)) write_wildly(m);
  int code = chance(&m->d, 10) ? fail_locally(m) : 0;
  if (!code) compute_locally(m);
  msi_handover_end(&m->side, code, roll(&m->d));
}

/* What main() returns. */
static int serve_locally(char **argv) {
  enum { LOOK_MS = 20 };
  static world w;
  w = make_world(strtoull(argv[2], NULL, 10), atoi(argv[3]));
  local_model m = {.s = &w.services[atoi(argv[4])], .d = {mix((uint64_t)getpid())}};
  m.calls = map_file(CALLS);
  m.tensors = map_file(TENSORS);
  msi_handover_open(&m.side, &m.calls->handover);
  while (!is_alone(0))
    if (msi_handover_next(&m.side, msi_deadline(LOOK_MS / 1e3))) answer_locally(&m);
  return 0;
}

#endif
