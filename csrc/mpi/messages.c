#include "mpi/messages.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "mpi/failure.h"

enum { OPERATION_TAG = 1, RESULT_TAG = 2 };
enum { PUT, GET };
enum {
  /* MPI hands over the whole of it at once (Open MPI: up to 64 KiB over TCP): a client that is
   * stopped in between would keep the head from those of others. */
  MESSAGE_BYTES = 32768,
  MESSAGES = 4,      /* of a client, under way */
  GETS = 32,         /* of a client, under way */
  MOST_AT_ONCE = 256 /* that a head obeys before it does other things */
};

/* A head that has stopped takes a message when it goes on: meanwhile the time-outs of requests
 * pass, until this rank has no room for another message. */
static const int64_t LONGEST_FLUSH_NS = 100000000;
static const int64_t LONGEST_WAIT_NS = 30000000000;

/* Followed by the data of a put. */
typedef struct operation {
  uint64_t at; /* in the head's memory */
  uint32_t bytes, kind;
} operation;

typedef struct pending {
  MPI_Request request;
  int rank; /* of the other side */
} pending;

typedef struct message {
  uint8_t *bytes;
  size_t filled;
  pending send;
} message;

struct msi_messages {
  MPI_Comm comm;
  msi_backoff backoff;

  /* Client */
  message out[MESSAGES]; /* in turns */
  int current, target;   /* the one that is being filled, and for whom */
  pending gets[GETS];
  int n_gets;

  /* Head */
  uint8_t *memory, *arriving;
  size_t bytes;
  pending *results; /* on their way to clients */
  int n_results;
  uint8_t *owed; /* of these, by world rank */
};

/* ---- open and close ---------------------------------------------------------------- */

static int allocate(msi_messages *m, const msi_world *world) {
  int lacking = 0;
  if (world->role == MPISERVE_INFERENCE) {
    m->arriving = malloc(MESSAGE_BYTES);
    m->results = malloc((size_t)world->n_simulation * GETS * sizeof *m->results);
    m->owed = calloc((size_t)world->size, sizeof *m->owed);
    lacking = !m->arriving || !m->results || !m->owed;
  }
  for (int i = 0; i < MESSAGES; i++) {
    m->out[i].send.request = MPI_REQUEST_NULL;
    if (world->role == MPISERVE_SIMULATION) m->out[i].bytes = malloc(MESSAGE_BYTES);
    lacking |= world->role == MPISERVE_SIMULATION && !m->out[i].bytes;
  }
  return lacking ? msi_error(MPISERVE_ENOMEM, "no memory for messages") : MPISERVE_OK;
}

int msi_messages_open(msi_window *window, size_t bytes) {
  msi_messages *m = window->messages = calloc(1, sizeof *m);
  if (!m) return msi_error(MPISERVE_ENOMEM, "no memory for messages");
  *m = (msi_messages){.comm = MPI_COMM_NULL,
                      .backoff = window->world->backoff,
                      .target = -1,
                      .memory = window->memory[MPISERVE_RMA],
                      .bytes = bytes};
  int code = allocate(m, window->world);
  int failed = MPI_Comm_dup(window->world->comm, &m->comm);
  return failed ? msi_mpi_error(failed, "MPI_Comm_dup") : code;
}

void msi_messages_close(msi_window *window) {
  msi_messages *m = window->messages;
  if (!m) return;
  if (m->comm != MPI_COMM_NULL) MPI_Comm_free(&m->comm);
  for (int i = 0; i < MESSAGES; i++) free(m->out[i].bytes);
  free(m->arriving);
  free(m->results);
  free(m->owed);
  free(m);
  window->messages = NULL;
}

/* ---- client -------------------------------------------------------------------------- */

/* MPI may still know nothing of a death that the kernel has told. */
static void give_up(pending *p, int is_receive) {
  if (is_receive) MPI_Cancel(&p->request);
  MPI_Request_free(&p->request);
}

/* Waits until it is complete, the other side dead, or the deadline over. */
static int finish(msi_window *window, pending *p, int is_receive, int64_t deadline) {
  msi_messages *m = window->messages;
  msi_wait wait = {0};
  while (p->request != MPI_REQUEST_NULL) {
    int done, failed = MPI_Test(&p->request, &done, MPI_STATUS_IGNORE);
    int died = msi_failure_note(window->world, m->comm, failed);
    if (failed && !died) return msi_mpi_error(failed, "MPI_Test");
    if (died || done || !msi_wait_pause(&wait, &m->backoff, NULL)) continue;
    msi_failure_look(window->world);
    if (msi_failure_is_dead(window->world, p->rank)) give_up(p, is_receive);
    if (msi_now() > deadline) break;
  }
  return MPISERVE_OK;
}

/* One that is synchronous is complete when the head has taken it, and thus all before it. */
static int send_current(msi_window *window, int synchronous) {
  msi_messages *m = window->messages;
  message *out = &m->out[m->current];
  if (!out->filled) return MPISERVE_OK;
  int failed =
      (synchronous ? MPI_Issend : MPI_Isend)(out->bytes, (int)out->filled, MPI_BYTE, m->target,
                                             OPERATION_TAG, m->comm, &out->send.request);
  out->send.rank = m->target;
  out->filled = 0;
  m->current = (m->current + 1) % MESSAGES;
  if (!failed) return MPISERVE_OK;
  out->send.request = MPI_REQUEST_NULL;
  if (msi_failure_note(window->world, m->comm, failed)) return MPISERVE_OK;
  return msi_mpi_error(failed, "MPI_Isend");
}

static int find_free(msi_window *window, message *out) {
  pending *send = &out->send;
  int code = finish(window, send, 0, msi_now() + LONGEST_WAIT_NS);
  if (code || send->request == MPI_REQUEST_NULL) return code;
  char text[MPISERVE_TEXT_SIZE] = "";
  msi_failure_name(window->world, send->rank, text, sizeof text);
  return msi_error(MPISERVE_EPEER,
                   "%s has taken no message for %d s: it has stopped, or its host is out of reach",
                   text, (int)(LONGEST_WAIT_NS / 1000000000));
}

/* A message to this head with room for an operation and some data. */
static int find_room(msi_window *window, int head, message **out) {
  msi_messages *m = window->messages;
  size_t needed = sizeof(operation) + sizeof(uint64_t);
  int code = MPISERVE_OK;
  if (m->target != head || m->out[m->current].filled + needed > MESSAGE_BYTES)
    code = send_current(window, 0);
  m->target = head;
  *out = &m->out[m->current];
  if (code || (*out)->send.request == MPI_REQUEST_NULL) return code;
  return find_free(window, *out);
}

static void append(message *out, const void *from, size_t bytes) {
  memcpy(out->bytes + out->filled, from, bytes);
  out->filled += bytes;
}

int msi_messages_put(msi_window *window, int head, size_t at, const void *from, size_t bytes) {
  const uint8_t *source = from;
  message *out;
  while (bytes) {
    int code = find_room(window, head, &out);
    if (code) return code;
    size_t room = MESSAGE_BYTES - out->filled - sizeof(operation);
    size_t piece = bytes < room ? bytes : room;
    append(out, &(operation){at, (uint32_t)piece, PUT}, sizeof(operation));
    append(out, source, piece);
    source += piece;
    at += piece;
    bytes -= piece;
  }
  return MPISERVE_OK;
}

int msi_messages_get(msi_window *window, int head, size_t at, void *to, size_t bytes) {
  msi_messages *m = window->messages;
  message *out;
  int code = m->n_gets == GETS ? msi_messages_flush(window, head) : MPISERVE_OK;
  if (!code) code = find_room(window, head, &out);
  if (code) return code;
  append(out, &(operation){at, (uint32_t)bytes, GET}, sizeof(operation));
  pending *get = &m->gets[m->n_gets];
  *get = (pending){MPI_REQUEST_NULL, head};
  int failed = MPI_Irecv(to, (int)bytes, MPI_BYTE, head, RESULT_TAG, m->comm, &get->request);
  m->n_gets += !failed;
  if (msi_failure_note(window->world, m->comm, failed)) return MPISERVE_OK;
  return failed ? msi_mpi_error(failed, "MPI_Irecv") : MPISERVE_OK;
}

/* The results of gets show that the head has taken the message. */
int msi_messages_flush(msi_window *window, int head) {
  msi_messages *m = window->messages;
  message *last = &m->out[m->current];
  if (m->target != head) return MPISERVE_OK; /* it was sent, and another one for another head */
  int code = send_current(window, !m->n_gets);
  int64_t deadline = m->n_gets ? INT64_MAX : msi_now() + LONGEST_FLUSH_NS;
  if (!code) code = finish(window, &last->send, 0, deadline);
  for (int i = 0; i < m->n_gets && !code; i++) code = finish(window, &m->gets[i], 1, INT64_MAX);
  m->n_gets = 0;
  return code;
}

/* ---- head ------------------------------------------------------------------------------ */

static void drop_sent(msi_window *window) {
  msi_messages *m = window->messages;
  for (int i = 0; i < m->n_results;) {
    pending *p = &m->results[i];
    int done, failed = MPI_Test(&p->request, &done, MPI_STATUS_IGNORE);
    msi_failure_note(window->world, m->comm, failed);
    if (failed || done) {
      m->owed[p->rank]--;
      *p = m->results[--m->n_results];
    } else {
      i++;
    }
  }
}

/* More than a client ever asks for at once get no answer. */
static void answer(msi_window *window, const operation *get, int client) {
  msi_messages *m = window->messages;
  pending *p = &m->results[m->n_results];
  if (m->owed[client] == GETS) return;
  p->rank = client;
  int failed = MPI_Isend(m->memory + get->at, (int)get->bytes, MPI_BYTE, client, RESULT_TAG,
                         m->comm, &p->request);
  msi_failure_note(window->world, m->comm, failed);
  m->owed[client] += !failed;
  m->n_results += !failed;
}

/* Nothing of it is trusted. */
static void obey(msi_window *window, int client, size_t bytes) {
  msi_messages *m = window->messages;
  const uint8_t *at = m->arriving, *end = at + bytes;
  operation next;
  while ((size_t)(end - at) >= sizeof next) {
    memcpy(&next, at, sizeof next);
    at += sizeof next;
    if (next.at > m->bytes || next.bytes > m->bytes - next.at) return;
    if (next.kind == GET) {
      answer(window, &next, client);
      continue;
    }
    if (next.bytes > (size_t)(end - at)) return;
    memcpy(m->memory + next.at, at, next.bytes);
    at += next.bytes;
  }
}

/* Takes the next message, if there is one. Probed for, since a receive from any source that is
 * complete when a death becomes known is an error for ever (Open MPI 5.0.11: PROC_FAILED_PENDING).
 */
static int take(msi_window *window, int *client, int *bytes) {
  msi_messages *m = window->messages;
  MPI_Message found;
  MPI_Status status;
  int any = 0;
  *client = *bytes = -1;
  int failed = MPI_Improbe(MPI_ANY_SOURCE, OPERATION_TAG, m->comm, &any, &found, &status);
  if (!failed && !any) return MPISERVE_OK;
  if (!failed) failed = MPI_Mrecv(m->arriving, MESSAGE_BYTES, MPI_BYTE, &found, &status);
  if (msi_failure_note(window->world, m->comm, failed)) return MPISERVE_OK;
  if (failed) return msi_mpi_error(failed, "MPI_Mrecv");
  *client = status.MPI_SOURCE;
  return MPI_Get_count(&status, MPI_BYTE, bytes), MPISERVE_OK;
}

int msi_messages_obey(msi_window *window) {
  int client, bytes;
  for (int i = 0; i < MOST_AT_ONCE; i++) {
    int code = take(window, &client, &bytes);
    if (code) return code;
    if (client < 0) break;
    if (bytes > 0 && window->world->roles[client] == MPISERVE_SIMULATION)
      obey(window, client, (size_t)bytes);
  }
  drop_sent(window);
  return MPISERVE_OK;
}
