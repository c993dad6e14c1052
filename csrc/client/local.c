#define _GNU_SOURCE
#include "client/local.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/handover.h"
#include "base/program.h"

/* Numbers that mpiserve/serving/local_model.py knows too. */
enum { RUN = 1, CALLS_FILE = 0, TENSORS_FILE = 1, FILES = 2 };
enum { ANSWER_BYTES = 1024, MOST_WORDS = 16, NUMBER_BYTES = 16 };

static const int64_t LEAVE_NS = 5000000000; /* that the process has to end its own children */

/* What the two processes map: calls, and the text of an error. */
typedef struct calls {
  msi_handover handover;
  char text[ANSWER_BYTES];
} calls;

/* A file without a name, mapped. */
typedef struct mapping {
  int fd;
  size_t bytes;
  void *memory;
} mapping;

typedef struct msi_local {
  msi_program program;
  msi_handover_side side;
  mapping files[FILES]; /* calls; tensors */
  size_t inputs_at[MPISERVE_MAX_TENSORS], outputs_at[MPISERVE_MAX_TENSORS];
  int answered;                   /* it has, once */
  char wrong[MPISERVE_TEXT_SIZE]; /* why it is not started again; "": it may be */
} msi_local;

int msi_local_wanted(const mpiserve_service *service) {
  return service->head->description.local[0] != 0;
}

/* ---- memory ------------------------------------------------------------------------------ */

/* Its pages are not reserved: few of them are used, if any. Its size is sealed, or the process at
 * the other end could make this one end by SIGBUS. */
static int map_new(mapping *m, size_t bytes) {
  *m = (mapping){.bytes = bytes, .memory = MAP_FAILED};
  m->fd = memfd_create("mpiserve-local", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (m->fd >= 0 && !ftruncate(m->fd, (off_t)bytes) &&
      !fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
    m->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
  if (m->memory != MAP_FAILED) return MPISERVE_OK;
  int code = msi_error(MPISERVE_ENOMEM, "no memory for its tensors: %s", strerror(errno));
  if (m->fd >= 0) close(m->fd);
  *m = (mapping){0};
  return code;
}

static void unmap(mapping *m) {
  if (!m->memory) return;
  munmap(m->memory, m->bytes);
  close(m->fd);
  *m = (mapping){0};
}

static size_t lay_out(msi_local *local, const msi_layout *layout) {
  uint32_t rows = (uint32_t)layout->max_rows;
  size_t end = msi_side_lay_out(&layout->inputs, rows, 0, local->inputs_at);
  return msi_side_lay_out(&layout->outputs, rows, end, local->outputs_at);
}

static int map_all(msi_local *local, const msi_layout *layout) {
  int code = map_new(&local->files[CALLS_FILE], sizeof(calls));
  return code ? code : map_new(&local->files[TENSORS_FILE], lay_out(local, layout));
}

/* ---- the process ------------------------------------------------------------------------- */

static void end(msi_local *local) {
  msi_program_end(&local->program, LEAVE_NS);
  for (int i = 0; i < FILES; i++) unmap(&local->files[i]);
}

/* The words of the published command, which it changes, and behind them this rank's own. */
static void fill_words(char *command, char *const *own, char **words) {
  char *rest = command, *word;
  int n = 0;
  while (n < MOST_WORDS && (word = strsep(&rest, "\n")) && *word) words[n++] = word;
  for (int i = 0; own[i]; i++) words[n++] = own[i];
  words[n] = NULL;
}

static int start_program(mpiserve_service *service, msi_local *local, char *why) {
  const msi_world *world = service->client->world;
  char command[MPISERVE_LOCAL_SIZE], rank[NUMBER_BYTES], node[NUMBER_BYTES], process[NUMBER_BYTES];
  char *words[MOST_WORDS + 5], *own[] = {process, rank, node, why, NULL};
  int files[FILES] = {local->files[CALLS_FILE].fd, local->files[TENSORS_FILE].fd};
  snprintf(command, sizeof command, "%s", service->head->description.local);
  snprintf(process, sizeof process, "%d", (int)getpid());
  snprintf(rank, sizeof rank, "%d", world->rank);
  snprintf(node, sizeof node, "%d", msi_world_index(world, world->rank));
  fill_words(command, own, words);
  return msi_program_start(&local->program, MPISERVE_EMODEL, words, files, FILES);
}

static int start(mpiserve_service *service, msi_local *local, const char *why) {
  char line[MPISERVE_TEXT_SIZE];
  int code = map_all(local, &service->endpoint->layout);
  snprintf(line, sizeof line, "%s", why);
  if (!code) code = start_program(service, local, line);
  if (!code) msi_handover_open(&local->side, local->files[CALLS_FILE].memory);
  if (code) end(local);
  return code;
}

/* ---- calls ------------------------------------------------------------------------------- */

static void write_inputs(msi_local *local, const msi_side *side, int64_t rows,
                         void *const *inputs) {
  for (int i = 0; i < side->n; i++)
    memcpy((uint8_t *)local->files[TENSORS_FILE].memory + local->inputs_at[i], inputs[i],
           (size_t)rows * side->row_bytes[i]);
}

static void read_outputs(const msi_local *local, const msi_side *side, int64_t rows,
                         void *const *outputs) {
  for (int i = 0; i < side->n; i++)
    memcpy(outputs[i], (uint8_t *)local->files[TENSORS_FILE].memory + local->outputs_at[i],
           (size_t)rows * side->row_bytes[i]);
}

static void post(msi_local *local, const msi_layout *layout, int64_t rows) {
  msi_handover *shared = local->side.shared;
  uint32_t n = 0;
  for (int i = 0; i < layout->inputs.n; i++)
    shared->place[n++] = (msi_place){0, local->inputs_at[i]};
  for (int i = 0; i < layout->outputs.n; i++)
    shared->place[n++] = (msi_place){0, local->outputs_at[i]};
  shared->operation = RUN;
  shared->places = n;
  shared->rows = rows;
  msi_handover_post(&local->side);
}

/* A process that has never answered is not started again: each try may take as long. */
static int lose(msi_local *local, const char *text) {
  end(local);
  if (!local->answered) snprintf(local->wrong, sizeof local->wrong, "%s", text);
  return msi_error(MPISERVE_EMODEL, "%s", text);
}

/* Also a process that reports rows for ever is late. */
static int wait_for_answer(msi_local *local, double limit) {
  int64_t deadline = msi_deadline(limit);
  char text[MPISERVE_TEXT_SIZE];
  int found;
  do found = msi_handover_wait(&local->side, deadline, local->program.pidfd);
  while (found == MSI_HANDOVER_ROWS && msi_now() < deadline);
  if (found == MSI_HANDOVER_DEAD) return lose(local, "its process has ended");
  if (found == MSI_HANDOVER_ENDED) return MPISERVE_OK;
  snprintf(text, sizeof text, "its process did not answer within %g s: it was killed", limit);
  return lose(local, text);
}

/* The text is in memory that another process writes: it ends where the memory does. */
static int result(msi_local *local) {
  const calls *shared = local->files[CALLS_FILE].memory;
  local->answered = 1;
  if (!shared->handover.code) return MPISERVE_OK;
  return msi_error(MPISERVE_EMODEL, "%.*s", (int)sizeof shared->text, shared->text);
}

static int run(mpiserve_service *service, msi_local *local, int64_t rows, void *const *inputs,
               void *const *outputs) {
  const msi_layout *layout = &service->endpoint->layout;
  write_inputs(local, &layout->inputs, rows, inputs);
  post(local, layout, rows);
  int code = wait_for_answer(local, service->head->description.local_timeout);
  if (!code) code = result(local);
  if (!code) read_outputs(local, &layout->outputs, rows, outputs);
  return code;
}

int msi_local_answer(mpiserve_service *service, int64_t rows, void *const *inputs,
                     void *const *outputs, const char *why) {
  if (service->generation > 1)
    return msi_error(MPISERVE_EMODEL, "it has the version of the start, and the service another");
  if (!service->local) service->local = calloc(1, sizeof(msi_local));
  msi_local *local = service->local;
  if (!local) return msi_error(MPISERVE_ENOMEM, "no memory for it");
  if (local->wrong[0]) return msi_error(MPISERVE_EMODEL, "%s", local->wrong);
  if (!local->program.pid) {
    if (start(service, local, why)) {
      char text[MPISERVE_TEXT_SIZE];
      snprintf(text, sizeof text, "%s", mpiserve_last_error());
      return lose(local, text);
    }
  }
  return run(service, local, rows, inputs, outputs);
}

void msi_local_end_all(msi_client *client) {
  for (int i = 0; client->services && i < client->n_services; i++) {
    msi_local *local = client->services[i].local;
    if (local) end(local);
    free(local);
    client->services[i].local = NULL;
  }
}
