#include "head/silence.h"

#include <stdlib.h>

#include "base/error.h"
#include "head/rounds.h"
#include "mpi/failure.h"

enum { MOST_NAMED = 8 }; /* ranks of a text */

static const double WAIT_NOTICE = 10;

/* 0 or less in the environment: never. As Python reads it. */
int64_t msi_silence_limit(void) {
  const char *text = getenv("MPISERVE_WAIT_NOTICE");
  char *end = NULL;
  double seconds = text ? strtod(text, &end) : 0;
  if (!text || end == text || *end || seconds != seconds) seconds = WAIT_NOTICE;
  return seconds > 0 && seconds < 1e9 ? (int64_t)(seconds * 1e9) : INT64_MAX;
}

const msi_broker *msi_silence_witness(const msi_serving *serving) {
  int i = 0;
  while (i < serving->n - 1 && !serving->brokers[i].remaining) i++;
  return &serving->brokers[i];
}

/* How many requests, records and batches there were; -1 while there are requests unanswered. */
static int64_t activity(const msi_serving *serving) {
  int64_t n = 0;
  for (int i = 0; i < serving->n; i++) {
    const msi_broker *broker = &serving->brokers[i];
    if (broker->queue.n || broker->tickets.n || broker->open) return -1;
    n += broker->counters.requests + broker->counters.batches + broker->capture.records;
  }
  return n;
}

static int is_long(msi_silence *silence, int64_t activity, uint32_t remaining) {
  int64_t now = msi_now();
  if (activity < 0 || activity != silence->activity || remaining != silence->remaining)
    *silence = (msi_silence){silence->limit_ns, now, activity, remaining};
  return now - silence->since_ns >= silence->limit_ns;
}

#define APPEND(...) msi_text_append(text, MPISERVE_TEXT_SIZE, __VA_ARGS__)

static void append_rank(const msi_world *world, int rank, int first, char *text) {
  int is_stopped = msi_failure_state_of(world, rank) == MSI_PEER_STOPPED;
  APPEND("%s %d%s", first ? "" : ",", rank, is_stopped ? " (stopped by a signal)" : "");
}

static void append_ranks(const msi_broker *broker, char *text) {
  uint32_t named = 0;
  APPEND(broker->remaining == 1 ? "simulation rank" : "simulation ranks");
  for (int t = 0; t < MSI_TRANSPORTS; t++) {
    const msi_inbox *inbox = &broker->inboxes[t];
    for (uint32_t l = 0; l < inbox->layout.lanes && named < MOST_NAMED; l++)
      if (!inbox->lanes[l].gone && !inbox->lanes[l].guest)
        append_rank(broker->world, inbox->clients[l], !named++, text);
  }
  if (broker->remaining > named) APPEND(" and %u more", broker->remaining - named);
}

int msi_silence_text(msi_serving *serving, char *text) {
  const msi_broker *broker = msi_silence_witness(serving);
  uint32_t lanes = (uint32_t)broker->world->n_simulation;
  int64_t n = activity(serving);
  text[0] = 0;
  if (msi_rounds_waiting(serving->brokers, serving->n, serving->silence.limit_ns, text))
    return MPISERVE_WAITS_FOR_ROUND;
  if (!is_long(&serving->silence, n, broker->remaining) || !broker->remaining)
    return MPISERVE_WAITS_NOT;
  if (broker->remaining < lanes) {
    append_ranks(broker, text);
    APPEND(broker->remaining == 1 ? " has" : " have");
    APPEND(
        " not left the session, and %u others have: the program computes, or waits for something",
        lanes - broker->remaining);
    return MPISERVE_WAITS_TO_LEAVE;
  }
  APPEND(n ? "no request any more" : "no request yet");
  if (!n) APPEND("; does the simulation use MPI_COMM_WORLD without libmpiserve_world.so?");
  APPEND(n ? ": the program" : " Or it");
  APPEND(" computes, or waits for something; this rank waits for ");
  append_ranks(broker, text);
  return n ? MPISERVE_WAITS_ON : MPISERVE_WAITS_TO_BEGIN;
}
