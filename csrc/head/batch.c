#include "head/batch.h"

#include <stdlib.h>

#include "base/error.h"

int msi_queue_open(msi_queue *queue) {
  *queue = (msi_queue){.capacity = 64};
  queue->entries = malloc(queue->capacity * sizeof *queue->entries);
  return queue->entries ? MPISERVE_OK : msi_error(MPISERVE_ENOMEM, "no memory for the queue");
}

void msi_queue_close(msi_queue *queue) {
  free(queue->entries);
  *queue = (msi_queue){0};
}

msi_entry *msi_queue_at(const msi_queue *queue, uint32_t i) {
  return &queue->entries[(queue->first + i) & (queue->capacity - 1)];
}

static int grow(msi_queue *queue) {
  msi_entry *entries = malloc(2 * queue->capacity * sizeof *entries);
  if (!entries) return msi_error(MPISERVE_ENOMEM, "no memory for %u waiting requests", queue->n);
  for (uint32_t i = 0; i < queue->n; i++) entries[i] = *msi_queue_at(queue, i);
  free(queue->entries);
  queue->entries = entries;
  queue->first = 0;
  queue->capacity *= 2;
  return MPISERVE_OK;
}

/* None overtakes an earlier one of its lane: that is urgent too, then. */
static void raise_earlier(msi_queue *queue, const msi_entry *last) {
  for (uint32_t i = 0; i < queue->n; i++) {
    msi_entry *e = msi_queue_at(queue, i);
    if (e->lane == last->lane && e->inbox == last->inbox && e->priority < last->priority)
      e->priority = last->priority;
  }
}

int msi_queue_push(msi_queue *queue, msi_entry entry) {
  if (queue->n == queue->capacity) {
    int code = grow(queue);
    if (code) return code;
  }
  queue->ranked |= entry.priority != 0;
  queue->timed |= entry.deadline_ns != 0;
  if (queue->ranked) raise_earlier(queue, &entry);
  *msi_queue_at(queue, queue->n++) = entry;
  queue->rows += entry.rows;
  return MPISERVE_OK;
}

/* Drops n entries at the front. */
static void advance(msi_queue *queue, uint32_t n) {
  queue->first = (queue->first + n) & (queue->capacity - 1);
  queue->n -= n;
  if (!queue->n) queue->ranked = queue->timed = 0;
}

msi_entry msi_queue_pop(msi_queue *queue) { return msi_queue_remove(queue, 0); }

msi_entry msi_queue_remove(msi_queue *queue, uint32_t i) {
  msi_entry entry = *msi_queue_at(queue, i);
  for (; i; i--) *msi_queue_at(queue, i) = *msi_queue_at(queue, i - 1);
  queue->rows -= entry.rows;
  advance(queue, 1);
  return entry;
}

int msi_queue_admits(const msi_policy *policy, const msi_queue *queue, uint32_t rows) {
  return !policy->queue_rows || !queue->n || queue->rows + rows <= policy->queue_rows;
}

/* Has a request waited for others as long as it may: max_delay, and half of its time? */
static int is_due(const msi_policy *policy, const msi_queue *queue, int64_t now_ns) {
  if (now_ns - msi_queue_at(queue, 0)->taken_ns >= policy->max_delay_ns) return 1;
  for (uint32_t i = 0; queue->timed && i < queue->n; i++) {
    const msi_entry *e = msi_queue_at(queue, i);
    if (e->deadline_ns && now_ns - e->taken_ns >= e->deadline_ns - now_ns) return 1;
  }
  return 0;
}

/* Rows that are not like those of the oldest request fill no batch of it, and requests that a batch
 * has left wait no more. Not inlined: others would save registers for it. */
__attribute__((noinline)) static msi_close_reason decide_alike(const msi_policy *policy,
                                                               const msi_queue *queue,
                                                               uint32_t asked, uint32_t able,
                                                               int64_t now_ns) {
  const msi_entry *first = msi_queue_at(queue, 0);
  int64_t rows = 0;
  for (uint32_t i = 0; i < queue->n && rows < policy->alike_rows; i++) {
    const msi_entry *e = msi_queue_at(queue, i);
    if (policy->alike(policy->of, first, e)) rows += e->rows;
  }
  if (policy->together || rows >= policy->alike_rows || queue->full) return MSI_CLOSED_ROWS;
  if (asked >= able || first->left) return MSI_CLOSED_CENSUS;
  return is_due(policy, queue, now_ns) ? MSI_CLOSED_DELAY : MSI_OPEN;
}

msi_close_reason msi_batch_decide(const msi_policy *policy, const msi_queue *queue, uint32_t asked,
                                  uint32_t able, int64_t now_ns) {
  if (!queue->n) return MSI_OPEN;
  if (policy->together || queue->rows >= policy->max_rows || queue->full)
    return policy->max_rows ? MSI_CLOSED_ROWS : decide_alike(policy, queue, asked, able, now_ns);
  if (asked >= able) return MSI_CLOSED_CENSUS;
  return is_due(policy, queue, now_ns) ? MSI_CLOSED_DELAY : MSI_OPEN;
}

/* May a request make so many rows of a batch that has n others? */
static int joins(const msi_policy *policy, uint32_t n, int64_t rows) {
  return policy->together ? !n : rows <= policy->max_rows;
}

static uint32_t pick_by_arrival(const msi_policy *policy, msi_queue *queue) {
  uint32_t n = 0;
  int64_t rows = 0;
  for (; n < queue->n; n++) {
    msi_entry *e = msi_queue_at(queue, n);
    rows += e->rows;
    if (n && !joins(policy, n, rows)) break;
    e->picked = 1;
  }
  return n;
}

/* The highest priority below a bound, or INT8_MIN: nobody has that. */
static int next_priority(const msi_queue *queue, int bound) {
  int highest = INT8_MIN;
  for (uint32_t i = 0; i < queue->n; i++) {
    int priority = msi_queue_at(queue, i)->priority;
    if (priority < bound && priority > highest) highest = priority;
  }
  return highest;
}

/* Whoever comes after one that does not fit waits too, or large ones would wait for ever. */
static uint32_t pick_by_priority(const msi_policy *policy, msi_queue *queue, uint32_t *span) {
  uint32_t n = 0;
  int64_t rows = 0;
  int level = next_priority(queue, INT8_MAX + 1);
  for (*span = 0; level > INT8_MIN; level = next_priority(queue, level))
    for (uint32_t i = 0; i < queue->n; i++) {
      msi_entry *e = msi_queue_at(queue, i);
      if (e->priority != level) continue;
      if (!joins(policy, n, rows += e->rows)) return n;
      e->picked = 1;
      n++;
      if (i >= *span) *span = i + 1;
    }
  return n;
}

/* A batch of requests that are alike, so far. */
typedef struct pick {
  const msi_entry *first;
  int64_t rows;
  uint32_t n, span;
} pick;

/* Adds the requests of one priority, or of any if that is INT8_MIN, that are like the first one; 0:
 * no more may join. */
static int pick_level(const msi_policy *policy, msi_queue *queue, int priority, pick *p) {
  for (uint32_t i = 0; i < queue->n; i++) {
    msi_entry *e = msi_queue_at(queue, i);
    if (priority > INT8_MIN && e->priority != priority) continue;
    if (!p->first) p->first = e;
    if (!policy->alike(policy->of, p->first, e)) continue;
    p->rows += e->rows;
    if (policy->together ? p->n : p->rows > policy->alike_rows) return 0;
    e->picked = 1;
    p->n++;
    if (i >= p->span) p->span = i + 1;
  }
  return 1;
}

/* Those that are left have waited for others already. */
__attribute__((noinline)) static uint32_t pick_alike(const msi_policy *policy, msi_queue *queue,
                                                     uint32_t *span) {
  pick p = {0};
  int by_arrival = !queue->ranked || queue->passed == MSI_FAIR_TURN - 1;
  int level = by_arrival ? INT8_MIN : next_priority(queue, INT8_MAX + 1);
  if (by_arrival) pick_level(policy, queue, INT8_MIN, &p);
  while (level > INT8_MIN && pick_level(policy, queue, level, &p))
    level = next_priority(queue, level);
  for (uint32_t i = 0; i < queue->n; i++)
    msi_queue_at(queue, i)->left |= !msi_queue_at(queue, i)->picked;
  queue->passed = !by_arrival && p.n < p.span ? queue->passed + 1 : 0;
  *span = p.span;
  return p.n;
}

void msi_queue_note(msi_queue *queue, uint32_t n, int lacked_room) {
  queue->shared |= n > 1;
  if (!lacked_room) return;
  queue->crowded += n == 1;
  if (queue->rows > queue->together_rows) queue->together_rows = queue->rows;
}

static uint32_t pick_batch(const msi_policy *policy, msi_queue *queue, int fits, uint32_t *span) {
  if (!fits && !policy->max_rows) return pick_alike(policy, queue, span);
  if (fits || !queue->ranked || queue->passed == MSI_FAIR_TURN - 1) {
    queue->passed = 0;
    return *span = pick_by_arrival(policy, queue);
  }
  uint32_t n = pick_by_priority(policy, queue, span);
  queue->passed = n < *span ? queue->passed + 1 : 0;
  return n;
}

uint32_t msi_batch_pick(const msi_policy *policy, msi_queue *queue, uint32_t *span) {
  int fits = queue->n < 2 || (!policy->together && queue->rows <= policy->max_rows);
  uint32_t n = pick_batch(policy, queue, fits, span);
  msi_queue_note(queue, n, !fits && !policy->together);
  return n;
}

/* Those that stay close up to the ones behind the span. */
void msi_queue_take_picked(msi_queue *queue, uint32_t span) {
  uint32_t to = span;
  for (uint32_t i = span; i-- > 0;) {
    const msi_entry *e = msi_queue_at(queue, i);
    if (e->picked)
      queue->rows -= e->rows;
    else
      *msi_queue_at(queue, --to) = *e;
  }
  advance(queue, to);
}
