#include "head/rounds.h"

#include "base/error.h"

enum { MOST_NAMED = 8, ROWS_NS = 1000000000 };

/* ---- turns ------------------------------------------------------------------------ */

static msi_lane *lane_of(const msi_broker *broker, const msi_entry *e) {
  return &broker->inboxes[e->inbox].lanes[e->lane];
}

static void clear_turns(msi_broker *broker) {
  for (int t = 0; t < MSI_TRANSPORTS; t++)
    for (uint32_t l = 0; l < broker->inboxes[t].layout.lanes; l++)
      broker->inboxes[t].lanes[l].turn = 0;
}

/* Finds the oldest request of each lane, of all or of those that are marked; returns their number.
 * Who asks is waited for again. */
static uint32_t find_turns(msi_broker *broker, int of_round) {
  uint32_t n = 0;
  clear_turns(broker);
  for (uint32_t i = broker->queue.n; i-- > 0;) {
    const msi_entry *e = msi_queue_at(&broker->queue, i);
    if (of_round && !e->in_round) continue;
    msi_lane *lane = lane_of(broker, e);
    lane->absent = 0;
    lane->turn = i + 1;
    n++;
  }
  return n;
}

uint32_t msi_rounds_left(msi_broker *broker) { return find_turns(broker, 1); }

/* Those of guests, or of all others. */
static void mark(msi_broker *broker, int guests) {
  for (uint32_t i = 0; i < broker->queue.n; i++) {
    msi_entry *e = msi_queue_at(&broker->queue, i);
    const msi_lane *lane = lane_of(broker, e);
    if (lane->turn == i + 1 && lane->guest == guests) e->in_round = 1;
  }
}

/* ---- is a round complete? --------------------------------------------------------- */

/* The clients of a round. */
typedef struct lacking {
  uint32_t asking, missing;
  uint32_t for_rows; /* of those missing: they wait for rows, so they cannot ask */
  uint32_t absent;   /* that it does not wait for */
  uint32_t guests;   /* that ask */
  msi_entry *piece;  /* of one of those that ask, after which others come; or NULL */
} lacking;

static void look_at(const msi_broker *broker, const msi_lane *lane, lacking *found) {
  msi_entry *e = lane->turn ? msi_queue_at(&broker->queue, lane->turn - 1) : NULL;
  if (lane->guest) {
    found->guests += e != NULL;
  } else if (e) {
    found->asking += !e->goes_on;
    if (e->goes_on) found->piece = e;
  } else if (lane->absent) {
    found->absent += !lane->gone;
  } else if (!lane->gone) {
    found->missing++;
    found->for_rows += lane->queued != 0;
  }
}

static lacking look_around(const msi_broker *broker) {
  lacking found = {0};
  for (int t = 0; t < MSI_TRANSPORTS; t++)
    for (uint32_t l = 0; l < broker->inboxes[t].layout.lanes; l++)
      look_at(broker, &broker->inboxes[t].lanes[l], &found);
  return found;
}

/* Rows may come back with the next messages of others: so those who wait for some are given time
 * too. The clock starts when the head sees that somebody is missing, and again after each batch. */
static msi_close_reason reason_of(msi_broker *broker, const lacking *found, int64_t now_ns) {
  msi_round *round = &broker->round;
  int64_t most = broker->policy.max_delay_ns;
  round->missing = found->asking ? found->missing : 0;
  if (!round->missing) round->waits_ns = 0;
  if (!round->missing) return found->asking ? MSI_CLOSED_CENSUS : MSI_OPEN;
  if (!round->waits_ns) round->waits_ns = now_ns;
  if (found->missing == found->for_rows && most > ROWS_NS) most = ROWS_NS;
  return now_ns - round->waits_ns < most ? MSI_OPEN : MSI_CLOSED_DELAY;
}

/* ---- rounds that lack clients ------------------------------------------------------- */

#define APPEND(...) msi_text_append(text, MPISERVE_TEXT_SIZE, __VA_ARGS__)

static int is_missing(const msi_lane *lane) {
  return !lane->guest && !lane->turn && !lane->gone && !lane->absent;
}

static void append_missing(const msi_broker *broker, char *text) {
  uint32_t named = 0;
  APPEND("simulation rank%s", broker->round.missing == 1 ? "" : "s");
  for (int t = 0; t < MSI_TRANSPORTS; t++) {
    const msi_inbox *inbox = &broker->inboxes[t];
    for (uint32_t l = 0; l < inbox->layout.lanes && named < MOST_NAMED; l++)
      if (is_missing(&inbox->lanes[l])) APPEND("%s %d", named++ ? "," : "", inbox->clients[l]);
  }
  if (broker->round.missing > named) APPEND(" and %u more", broker->round.missing - named);
}

static char *begin_text(const msi_broker *broker, char *text, const char *what) {
  text[0] = 0;
  APPEND("service '%s' is reproducible, and %s", broker->description->name, what);
  return text;
}

/* Those that wait for rows are waited for in the next round. */
static void go_without(msi_broker *broker, const lacking *found) {
  int for_rows = found->missing == found->for_rows;
  char *text = begin_text(broker, broker->round.text, "had to run a batch without ");
  append_missing(broker, text);
  if (for_rows) APPEND(": no rows are free for them; raise its pool_bytes");
  if (!for_rows)
    APPEND(", which did not ask within %g s", 1e-9 * (double)broker->policy.max_delay_ns);
  for (int t = 0; t < MSI_TRANSPORTS && !for_rows; t++)
    for (uint32_t l = 0; l < broker->inboxes[t].layout.lanes; l++) {
      msi_lane *lane = &broker->inboxes[t].lanes[l];
      lane->absent |= is_missing(lane) && !lane->queued;
    }
}

void msi_rounds_lose(msi_broker *broker, const msi_entry *entry) {
  char *text = begin_text(broker, broker->round.text, "lost a request of simulation rank ");
  broker->round.irregular++;
  APPEND("%d, which was cancelled, or its deadline passed",
         broker->inboxes[entry->inbox].clients[entry->lane]);
}

int msi_rounds_waiting(const msi_broker *brokers, int n, int64_t limit_ns, char *text) {
  for (int i = 0; i < n; i++) {
    int64_t since_ns = brokers[i].round.waits_ns;
    if (!since_ns || msi_now() - since_ns < limit_ns) continue;
    append_missing(&brokers[i], begin_text(&brokers[i], text, "waits for "));
    return 1;
  }
  return 0;
}

/* ---- rounds ------------------------------------------------------------------------- */

void msi_rounds_forget(msi_broker *broker) {
  broker->round.waits_ns = 0;
  for (uint32_t i = 0; i < broker->queue.n; i++) msi_queue_at(&broker->queue, i)->in_round = 0;
}

msi_close_reason msi_rounds_decide(msi_broker *broker, int64_t now_ns) {
  if (!broker->queue.n || !broker->has_room || broker->shut) {
    broker->round.waits_ns = 0; /* or the next round would seem to wait since then */
    return MSI_OPEN;
  }
  if (msi_rounds_left(broker)) return MSI_CLOSED_CENSUS; /* more than fitted into its last batch */
  find_turns(broker, 0);
  lacking found = look_around(broker);
  if (found.piece) {
    found.piece->in_round = 1;
    return MSI_CLOSED_ROWS;
  }
  msi_close_reason reason = reason_of(broker, &found, now_ns);
  if (reason == MSI_CLOSED_DELAY) go_without(broker, &found);
  broker->round.irregular += reason == MSI_CLOSED_DELAY || (reason && found.absent);
  if (reason || found.guests) mark(broker, !reason);
  return reason || !found.guests ? reason : MSI_CLOSED_CENSUS;
}

/* ---- its batches ------------------------------------------------------------------- */

static uint32_t next_turn(const msi_inbox *inbox, uint32_t lane) {
  while (lane < inbox->layout.lanes && !inbox->lanes[lane].turn) lane++;
  return lane;
}

/* The request of the next client, by rank, from lanes at[] on; NULL: there is none. */
static msi_entry *next_by_rank(const msi_broker *broker, uint32_t at[MSI_TRANSPORTS]) {
  int first = -1;
  for (int t = 0; t < MSI_TRANSPORTS; t++) {
    const msi_inbox *inbox = &broker->inboxes[t];
    at[t] = next_turn(inbox, at[t]);
    if (at[t] == inbox->layout.lanes) continue;
    if (first < 0 || inbox->clients[at[t]] < broker->inboxes[first].clients[at[first]]) first = t;
  }
  if (first < 0) return NULL;
  return msi_queue_at(&broker->queue, broker->inboxes[first].lanes[at[first]++].turn - 1);
}

/* A batch whose requests need not be alike is limited by max_rows, and one of others by
 * alike_rows. */
static int is_alike(const msi_policy *policy, const msi_assembly *assembly, const msi_entry *e) {
  return policy->max_rows || !assembly->n || policy->alike(policy->of, &assembly->members[0], e);
}

static int fits(const msi_policy *policy, const msi_assembly *assembly, const msi_entry *e) {
  int64_t most = policy->max_rows ? policy->max_rows : policy->alike_rows;
  return !assembly->n || assembly->batch.rows + e->rows <= most;
}

/* Once one does not fit, those of higher ranks wait with it. */
int msi_rounds_collect(msi_broker *broker) {
  msi_assembly *assembly = &broker->assembly;
  uint32_t at[MSI_TRANSPORTS] = {0};
  broker->round.waits_ns = 0;
  int code = msi_assembly_begin(assembly, msi_rounds_left(broker)), is_full = 0;
  for (msi_entry *e; !code && (e = next_by_rank(broker, at));) {
    if (!is_alike(&broker->policy, assembly, e)) continue;
    is_full = !fits(&broker->policy, assembly, e);
    if (is_full) break;
    e->picked = 1;
    msi_census_unqueue(&broker->census, lane_of(broker, e));
    msi_assembly_add(assembly, e);
  }
  msi_queue_note(&broker->queue, assembly->n, is_full);
  msi_queue_take_picked(&broker->queue, broker->queue.n);
  return code;
}
