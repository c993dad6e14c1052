#include "base/handover.h"

#include <poll.h>

enum {
  YIELD_NS = 50000,   /* a model computes on the core that its parent would spin on */
  WATCH_NS = 2000000, /* between two looks whether the child lives */
  IDLE_NS = 100000000
};

/* After some looks it yields at once: where both sides share a core, the other one can go on only
 * then (a spin of 2 us made a call there last 7.9 in place of 3.9 us), and where they do not, a
 * yield is one more look that takes a little longer. */
void msi_handover_open(msi_handover_side *side, msi_handover *shared) {
  *side = (msi_handover_side){.shared = shared};
  side->backoff = (msi_backoff){.yield_ns = YIELD_NS};
}

/* Sleeper: flag up, fence, look, sleep. Waker: change, fence, look at the flag. With a fence on
 * each side one of them sees what the other did, so no wake-up is lost, and sleeps may be long: a
 * call costs microseconds, of which a fence is 1 %. */
static void sleep_while(_Atomic uint32_t *word, uint32_t value, _Atomic uint32_t *asleep,
                        int64_t ns) {
  atomic_store_explicit(asleep, 1, memory_order_relaxed);
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load_explicit(word, memory_order_relaxed) == value) msi_futex_wait(word, value, ns);
  atomic_store_explicit(asleep, 0, memory_order_relaxed);
}

/* Release: whoever sees the new value sees the fields that belong to it. */
static void change(_Atomic uint32_t *word, uint32_t value, _Atomic uint32_t *asleep) {
  atomic_store_explicit(word, value, memory_order_release);
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load_explicit(asleep, memory_order_relaxed)) msi_futex_wake(word);
}

static int64_t shorter(int64_t ns, int64_t deadline, int64_t now) {
  return deadline - now < ns ? deadline - now : ns;
}

void msi_handover_post(msi_handover_side *parent) {
  msi_handover *shared = parent->shared;
  change(&shared->request, ++parent->request, &shared->child_asleep);
}

int msi_handover_dead(int pidfd) {
  struct pollfd end = {pidfd, POLLIN, 0};
  return pidfd >= 0 && poll(&end, 1, 0) > 0;
}

int msi_handover_taken(const msi_handover_side *parent) {
  return atomic_load_explicit(&parent->shared->taken, memory_order_relaxed) == parent->request;
}

/* Acquire: pairs with the release of change(), so that results and answer are seen. One word says
 * all: a second load might see the end of the call whose report the first one saw, and the news of
 * that end would then count as a report of the next call. */
static int look(msi_handover_side *parent) {
  uint32_t news = atomic_load_explicit(&parent->shared->news, memory_order_acquire);
  if (news == parent->news) return MSI_HANDOVER_LATE;
  parent->news = news;
  return news % 2 ? MSI_HANDOVER_ENDED : MSI_HANDOVER_ROWS;
}

int msi_handover_wait(msi_handover_side *parent, int64_t deadline, int pidfd) {
  msi_handover *shared = parent->shared;
  msi_wait wait = {0};
  int found, dead = 0;
  /* A child that has died may have answered before: one more look, then it is over. */
  while (!(found = look(parent)) && !dead) {
    if (msi_wait_spin(&wait, &parent->backoff) != MSI_WAIT_SPENT) continue;
    int64_t now = msi_now();
    if (now >= deadline) return MSI_HANDOVER_LATE;
    int64_t ns = shorter(WATCH_NS, deadline, now);
    sleep_while(&shared->news, parent->news, &shared->parent_asleep, ns);
    dead = msi_handover_dead(pidfd);
  }
  return found ? found : MSI_HANDOVER_DEAD;
}

int msi_handover_next(msi_handover_side *child, int64_t deadline) {
  msi_handover *shared = child->shared;
  msi_wait wait = {0};
  /* Acquire: pairs with the release of change(), so that the fields of the call are seen. */
  while (atomic_load_explicit(&shared->request, memory_order_acquire) == child->request) {
    if (msi_wait_spin(&wait, &child->backoff) != MSI_WAIT_SPENT) continue;
    int64_t now = msi_now();
    if (now >= deadline) return 0;
    int64_t ns = shorter(IDLE_NS, deadline, now);
    sleep_while(&shared->request, child->request, &shared->child_asleep, ns);
  }
  child->request++;
  /* Relaxed: read only once the child is dead, and then the kernel has ordered it. */
  atomic_store_explicit(&shared->taken, child->request, memory_order_relaxed);
  atomic_store_explicit(&shared->rows_done, 0, memory_order_relaxed);
  return 1;
}

void msi_handover_rows(msi_handover_side *child, int64_t rows) {
  msi_handover *shared = child->shared;
  atomic_store_explicit(&shared->rows_done, rows, memory_order_relaxed);
  child->news = (child->news | 1) + 1; /* even */
  change(&shared->news, child->news, &shared->parent_asleep);
}

void msi_handover_end(msi_handover_side *child, int code, uint64_t answer_size) {
  msi_handover *shared = child->shared;
  shared->code = code;
  shared->answer_size = answer_size;
  child->news = (child->news + 1) | 1; /* odd */
  change(&shared->news, child->news, &shared->parent_asleep);
}
