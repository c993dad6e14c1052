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
  MESSAGES = 4,       /* of a client, under way; more only while a head takes none */
  SMALL_BYTES = 1024, /* puts that never wait: slots and doorbells, few for each lane */
  GETS = 64,          /* of a client, under way */
  KEPT_BYTES = 1 << 20,
  NS_PER_BYTE = 100, /* a transfer that is slower than that shows no sign of life */
  MOST_AT_ONCE = 256 /* that a head obeys before it does other things */
};

/* A head that has stopped takes a message when it goes on: meanwhile the time-outs of requests
 * pass. No call waits longer for a head that takes nothing. */
static const int64_t WAIT_NS = 20000000;
static const int64_t WAIT_FOR_ROOM_NS = 100000000;

/* Followed by the data of a put. */
typedef struct operation {
  uint64_t at; /* in the head's memory */
  uint32_t bytes, kind;
} operation;

typedef struct pending {
  MPI_Request request;
  int rank;         /* of the other side */
  int has_arrived;  /* and it did not end by a death */
  int64_t since_ns; /* it is late */
} pending;

typedef struct message {
  uint8_t *bytes;
  size_t filled;
  pending send;
  struct message *next; /* of a ring: the oldest is the next to be filled */
} message;

/* Its result arrives in memory of ours: a caller that waits no longer uses its own again. */
typedef struct get {
  pending receive;
  int used, reader;
  size_t bytes, room;
  uint8_t *result;
  void *to; /* NULL: nobody wants it any more */
} get;

struct msi_messages {
  MPI_Comm comm;
  msi_backoff backoff;

  /* Client */
  message *last; /* sent; its next one is being filled, */
  int target;    /* for this head */
  get gets[GETS];

  /* Head */
  uint8_t *memory, *arriving;
  size_t bytes;
  pending *results; /* on their way to clients */
  int n_results;
  uint8_t *owed; /* of these, by world rank */
};

/* ---- open and close ---------------------------------------------------------------- */

/* One more, which is filled next. */
static message *add_message(msi_messages *m) {
  message *made = calloc(1, sizeof *made);
  if (made) made->bytes = malloc(MESSAGE_BYTES);
  if (!made || !made->bytes) {
    free(made);
    return NULL;
  }
  made->send.request = MPI_REQUEST_NULL;
  made->next = m->last ? m->last->next : made;
  if (m->last) m->last->next = made;
  if (!m->last) m->last = made;
  return made;
}

static int allocate(msi_messages *m, const msi_world *world) {
  int lacking = 0;
  if (world->role == MPISERVE_INFERENCE) {
    m->arriving = malloc(MESSAGE_BYTES);
    m->results = malloc((size_t)world->n_clients * GETS * sizeof *m->results);
    m->owed = calloc((size_t)world->size, sizeof *m->owed);
    lacking = !m->arriving || !m->results || !m->owed;
  }
  for (int i = 0; i < MESSAGES && world->role != MPISERVE_INFERENCE; i++)
    lacking |= !add_message(m);
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

/* For one whose other side has gone: MPI may still know nothing of a death that the kernel has
 * told. */
static void give_up(pending *p, int is_receive) {
  if (is_receive) MPI_Cancel(&p->request);
  MPI_Request_free(&p->request);
}

static void free_messages(msi_messages *m) {
  message *first = m->last ? m->last->next : NULL, *one = first;
  while (one) {
    message *next = one->next;
    if (one->send.request == MPI_REQUEST_NULL) free(one->bytes); /* else MPI may still read it */
    free(one);
    one = next == first ? NULL : next;
  }
}

/* What is still to arrive may arrive all the same. */
static void free_gets(msi_messages *m) {
  for (int i = 0; i < GETS; i++) {
    get *g = &m->gets[i];
    if (!g->used) free(g->result);
    if (g->used && g->receive.request != MPI_REQUEST_NULL) give_up(&g->receive, 1);
  }
}

void msi_messages_close(msi_window *window) {
  msi_messages *m = window->messages;
  if (!m) return;
  free_gets(m);
  if (m->comm != MPI_COMM_NULL) MPI_Comm_free(&m->comm);
  free_messages(m);
  free(m->arriving);
  free(m->results);
  free(m->owed);
  free(m);
  window->messages = NULL;
}

/* ---- what is under way --------------------------------------------------------------- */

static void begin(pending *p, int rank, size_t bytes) {
  *p = (pending){MPI_REQUEST_NULL, rank, 0, msi_now() + (int64_t)bytes * NS_PER_BYTE};
}

static int look(msi_window *window, pending *p) {
  int done, failed = MPI_Test(&p->request, &done, MPI_STATUS_IGNORE);
  p->has_arrived = done && !failed;
  if (!failed || msi_failure_note(window->world, window->messages->comm, failed))
    return MPISERVE_OK;
  return msi_mpi_error(failed, "MPI_Test");
}

/* Waits until it is complete, the other side dead, or the time over. */
static int finish(msi_window *window, pending *p, int is_receive, int64_t ns) {
  int64_t deadline = msi_now() + ns;
  msi_wait wait = {0};
  while (p->request != MPI_REQUEST_NULL) {
    int code = look(window, p);
    if (code) return code;
    if (p->request == MPI_REQUEST_NULL) break;
    if (ns && !msi_wait_pause(&wait, &window->messages->backoff, NULL)) continue;
    msi_failure_look(window->world);
    if (msi_failure_is_dead(window->world, p->rank)) give_up(p, is_receive);
    if (msi_now() > deadline) break;
  }
  return MPISERVE_OK;
}

/* ---- client: messages ------------------------------------------------------------------ */

/* One that is synchronous is complete when the head has taken it, and thus all before it. */
static int send_current(msi_window *window, int synchronous) {
  msi_messages *m = window->messages;
  message *out = m->last->next;
  if (!out->filled) return MPISERVE_OK;
  begin(&out->send, m->target, out->filled);
  int failed =
      (synchronous ? MPI_Issend : MPI_Isend)(out->bytes, (int)out->filled, MPI_BYTE, m->target,
                                             OPERATION_TAG, m->comm, &out->send.request);
  out->filled = 0;
  m->last = out;
  if (!failed) return MPISERVE_OK;
  out->send.request = MPI_REQUEST_NULL;
  if (msi_failure_note(window->world, m->comm, failed)) return MPISERVE_OK;
  return msi_mpi_error(failed, "MPI_Isend");
}

/* The oldest message, if it has been sent, else a new one; for rows there is none more. */
static int find_free(msi_window *window, int is_small, message **out) {
  msi_messages *m = window->messages;
  *out = m->last->next;
  int code = finish(window, &(*out)->send, 0, is_small ? 0 : WAIT_FOR_ROOM_NS);
  if (code || (*out)->send.request == MPI_REQUEST_NULL) return code;
  if (!is_small) return MSI_NOT_YET;
  *out = add_message(m);
  return *out ? MPISERVE_OK : msi_error(MPISERVE_ENOMEM, "no memory for messages");
}

/* A message to this head with room for an operation and some data. */
static int find_room(msi_window *window, int head, int is_small, message **out) {
  msi_messages *m = window->messages;
  size_t needed = sizeof(operation) + sizeof(uint64_t);
  int code = MPISERVE_OK;
  if (m->target != head || m->last->next->filled + needed > MESSAGE_BYTES)
    code = send_current(window, 0);
  m->target = head;
  *out = m->last->next;
  if (code || (*out)->send.request == MPI_REQUEST_NULL) return code;
  return find_free(window, is_small, out);
}

static void append(message *out, const void *from, size_t bytes) {
  memcpy(out->bytes + out->filled, from, bytes);
  out->filled += bytes;
}

int msi_messages_put(msi_window *window, int head, size_t at, const void *from, size_t bytes) {
  const uint8_t *source = from;
  int is_small = bytes <= SMALL_BYTES;
  message *out;
  while (bytes) {
    int code = find_room(window, head, is_small, &out);
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

int msi_messages_flush(msi_window *window, int head) {
  msi_messages *m = window->messages;
  message *last = m->last->next;
  if (m->target != head || !last->filled) return MPISERVE_OK; /* all was sent */
  int code = send_current(window, 1);
  return code ? code : finish(window, &last->send, 0, WAIT_NS);
}

/* ---- client: gets ------------------------------------------------------------------------ */

static void settle(get *g) {
  if (g->to && g->receive.has_arrived) memcpy(g->to, g->result, g->bytes);
  g->used = 0;
  if (g->room <= KEPT_BYTES) return;
  free(g->result);
  g->result = NULL;
  g->room = 0;
}

/* Those that nobody wants any more take their turn all the same: results of a head arrive in the
 * order in which it was asked. */
static get *find_get(msi_window *window) {
  msi_messages *m = window->messages;
  for (int i = 0; i < GETS; i++) {
    get *g = &m->gets[i];
    if (g->used && !g->to && !finish(window, &g->receive, 1, 0) &&
        g->receive.request == MPI_REQUEST_NULL)
      settle(g);
    if (!g->used) return g;
  }
  return NULL;
}

static int reserve(get *g, size_t bytes) {
  if (g->room < bytes) {
    free(g->result);
    g->result = malloc(bytes);
    g->room = g->result ? bytes : 0;
  }
  g->bytes = bytes;
  return g->room >= bytes ? MPISERVE_OK : msi_error(MPISERVE_ENOMEM, "no memory for results");
}

/* More of them than ever belong to one request. */
static int too_many_gets(const msi_window *window, int head) {
  char text[MPISERVE_TEXT_SIZE] = "";
  msi_failure_name(window->world, head, text, sizeof text);
  return msi_error(MPISERVE_EPEER, "%s: too many results have not arrived: a rank has stopped",
                   text);
}

int msi_messages_get(msi_window *window, int head, int reader, size_t at, void *to, size_t bytes) {
  msi_messages *m = window->messages;
  message *out;
  get *g = find_get(window);
  if (!g) return too_many_gets(window, head);
  int code = reserve(g, bytes);
  if (!code) code = find_room(window, head, 1, &out);
  if (code) return code;
  append(out, &(operation){at, (uint32_t)bytes, GET}, sizeof(operation));
  begin(&g->receive, head, bytes);
  g->used = 1;
  g->reader = reader;
  g->to = to;
  int failed =
      MPI_Irecv(g->result, (int)bytes, MPI_BYTE, head, RESULT_TAG, m->comm, &g->receive.request);
  if (!failed || msi_failure_note(window->world, m->comm, failed)) return MPISERVE_OK;
  g->used = 0;
  return msi_mpi_error(failed, "MPI_Irecv");
}

static int is_read_by(const get *g, int head, int reader) {
  return g->used && g->to && g->receive.rank == head && g->reader == reader;
}

int msi_messages_read_end(msi_window *window, int head, int reader) {
  msi_messages *m = window->messages;
  int lost = 0, code = m->target == head ? send_current(window, 0) : MPISERVE_OK;
  for (int i = 0; i < GETS && !code; i++) {
    get *g = &m->gets[i];
    if (!is_read_by(g, head, reader)) continue;
    code = finish(window, &g->receive, 1, WAIT_NS);
    if (code) break;
    if (g->receive.request != MPI_REQUEST_NULL) return MSI_NOT_YET;
    lost |= !g->receive.has_arrived;
    settle(g);
  }
  return code || !lost ? code : msi_error(MPISERVE_EPEER, "inference rank %d has died", head);
}

void msi_messages_forget(msi_window *window, int head, int reader) {
  for (int i = 0; i < GETS; i++) {
    get *g = &window->messages->gets[i];
    if (is_read_by(g, head, reader)) g->to = NULL;
  }
}

/* ---- client: signs of life ----------------------------------------------------------------- */

/* The earlier of two times of which 0 is none. */
static int64_t since(msi_window *window, pending *p, int is_receive, int head, int64_t earliest) {
  if (p->rank != head || finish(window, p, is_receive, 0) || p->request == MPI_REQUEST_NULL)
    return earliest;
  return !earliest || p->since_ns < earliest ? p->since_ns : earliest;
}

int64_t msi_messages_untaken_since(msi_window *window, int head) {
  msi_messages *m = window->messages;
  int64_t earliest = 0;
  for (int i = 0; i < GETS; i++)
    if (m->gets[i].used) earliest = since(window, &m->gets[i].receive, 1, head, earliest);
  message *one = m->last;
  do earliest = since(window, &one->send, 0, head, earliest);
  while ((one = one->next) != m->last);
  return earliest;
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
    if (bytes > 0 && msi_world_is_client(window->world, client))
      obey(window, client, (size_t)bytes);
  }
  drop_sent(window);
  return MPISERVE_OK;
}
