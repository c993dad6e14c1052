#define _GNU_SOURCE
#include "base/wait.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

enum {
  LOOKS_PER_CLOCK = 16,
  LOOKS_PER_YIELD = 64, /* a sibling on the same core gets more done between two yields */
  SHORT_SPIN_NS = 2000,
  LONG_YIELD_NS = 10000,
  FIRST_NAP_NS = 20000,
  CROWDED_EVERY_NS = 50000, /* MPI's progress costs more than a yield, where others want the core */
  SLEEP_NS = 1000000        /* at an address: MPI gets its turn now and then all the same */
};

int64_t msi_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t msi_deadline(double seconds) {
  if (seconds < 0 || seconds > 9e8) return INT64_MAX;
  return msi_now() + (int64_t)(seconds * 1e9);
}

/* Two ranks may share a core even where there are enough: then a spin of 200 us made
 * each round trip last 400 us, until the scheduler moved one of them. */
msi_backoff msi_backoff_for(int ranks, int cores) {
  if (ranks <= cores) return (msi_backoff){4000, 4000, 2000000, 200000, 0, 0};
  return (msi_backoff){SHORT_SPIN_NS, SHORT_SPIN_NS, 50000, 500000, CROWDED_EVERY_NS, 0};
}

static void yield(msi_backoff *backoff, int64_t now) {
  sched_yield();
  int64_t spin = 2 * backoff->spin_ns;
  if (msi_now() - now > LONG_YIELD_NS) spin = SHORT_SPIN_NS;
  backoff->spin_ns = spin < backoff->most_spin_ns ? spin : backoff->most_spin_ns;
}

static int64_t nap(int64_t ns, int64_t longest) {
  struct timespec t = {0, ns};
  nanosleep(&t, NULL);
  return 2 * ns < longest ? 2 * ns : longest;
}

#ifdef __linux__
void msi_futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns) {
  struct timespec limit = {ns / 1000000000, ns % 1000000000};
  syscall(SYS_futex, word, FUTEX_WAIT, value, &limit, NULL, 0);
}

void msi_futex_wake(_Atomic uint32_t *word) {
  syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static int64_t limit(const msi_wait_address *address) {
  if (!address->until_ns) return SLEEP_NS;
  int64_t left = address->until_ns - msi_now();
  return left < SLEEP_NS ? left : SLEEP_NS;
}

/* Sleeper: flag up, fence, look, sleep. Waker: change, look at the flag, without a fence:
 * one there cost 30 ns in each direction of every request, to wait for its own stores. So
 * a flag that goes up while the change is still in the waker's store buffer, some 100 ns,
 * may be missed; then the sleeper finds out after SLEEP_NS by itself. The page
 * docs/internals/protocol_model.md proves which cases there are. */
static int sleep_at(msi_wait *wait, const msi_wait_address *address) {
  if (wait->armed != address->wakers) { /* or some of them have come, who have not seen the flag */
    atomic_store_explicit(address->flag, address->wakers, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    wait->armed = address->wakers;
    return 1;
  }
  uint32_t word = atomic_load_explicit(address->word, memory_order_acquire);
  int64_t ns = limit(address);
  if (word != address->target && ns > 0) msi_futex_wait(address->word, word, ns);
  msi_wait_end(wait, address);
  return 1;
}

/* Each of those that the sleeper waits for comes by here once or more, and may miss the flag as
 * above: then the last one of them is missing, too, until the limit of the sleep. */
__attribute__((noinline)) static void wake(_Atomic uint32_t *word, _Atomic uint32_t *flag,
                                           uint32_t wakers) {
  while (!atomic_compare_exchange_weak_explicit(flag, &wakers, wakers - 1, memory_order_relaxed,
                                                memory_order_relaxed))
    if (!wakers) return;
  if (wakers == 1) msi_futex_wake(word);
}

void msi_wait_wake(_Atomic uint32_t *word, _Atomic uint32_t *flag) {
  uint32_t wakers = atomic_load_explicit(flag, memory_order_relaxed);
  if (wakers) wake(word, flag, wakers);
}
#else
void msi_futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns) {
  int64_t most = ns < SLEEP_NS ? ns : SLEEP_NS;
  if (atomic_load_explicit(word, memory_order_relaxed) == value) nap(most, most);
}
void msi_futex_wake(_Atomic uint32_t *word) { (void)word; }
static int sleep_at(msi_wait *wait, const msi_wait_address *address) {
  return 0 && wait && address;
}
void msi_wait_wake(_Atomic uint32_t *word, _Atomic uint32_t *flag) { (void)word, (void)flag; }
#endif

void msi_wait_end(msi_wait *wait, const msi_wait_address *address) {
  if (!wait->armed) return;
  atomic_store_explicit(address->flag, 0, memory_order_relaxed);
  wait->armed = 0;
}

int msi_wait_spin(msi_wait *wait, msi_backoff *backoff) {
  unsigned every = wait->yields ? LOOKS_PER_YIELD : LOOKS_PER_CLOCK;
  if (++wait->looks % every) {
    RELAX();
    return MSI_WAIT_SPUN;
  }
  int64_t now = msi_now();
  if (!wait->start_ns) wait->start_ns = now; /* what ends sooner needs no clock */
  int64_t waited = now - wait->start_ns;
  if (waited < backoff->spin_ns) return MSI_WAIT_SPUN;
  if (waited >= backoff->most_spin_ns + backoff->yield_ns) return MSI_WAIT_SPENT;
  wait->yields = 1;
  yield(backoff, now);
  if (now - backoff->told_ns < backoff->every_ns) return MSI_WAIT_SPUN;
  backoff->told_ns = now;
  return MSI_WAIT_YIELDED;
}

int msi_wait_sleep(msi_wait *wait, msi_backoff *backoff, const msi_wait_address *address) {
  if (!address || !sleep_at(wait, address))
    wait->nap_ns = nap(wait->nap_ns ? wait->nap_ns : FIRST_NAP_NS, backoff->sleep_ns);
  return 1;
}

int msi_wait_pause(msi_wait *wait, msi_backoff *backoff, const msi_wait_address *address) {
  int what = msi_wait_before_sleep(wait, backoff);
  return what == MSI_WAIT_SPENT ? msi_wait_sleep(wait, backoff, address) : what;
}

int msi_cores(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}
