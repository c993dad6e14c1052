#define _GNU_SOURCE
#include "wait.h"

#include <sched.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

enum { LOOKS_PER_CLOCK = 16, FIRST_NAP_NS = 20000, SHORT_SPIN_NS = 2000, LONG_YIELD_NS = 10000 };

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
msi_patience msi_patience_for(int ranks, int cores) {
  if (ranks <= cores) return (msi_patience){20000, 20000, 2000000, 200000};
  return (msi_patience){SHORT_SPIN_NS, SHORT_SPIN_NS, 50000, 500000};
}

static void yield(msi_patience *patience, int64_t now) {
  sched_yield();
  int64_t spin = 2 * patience->spin_ns;
  if (msi_now() - now > LONG_YIELD_NS) spin = SHORT_SPIN_NS;
  patience->spin_ns = spin < patience->most_spin_ns ? spin : patience->most_spin_ns;
}

static int64_t nap(int64_t ns, int64_t longest) {
  struct timespec t = {0, ns};
  nanosleep(&t, NULL);
  return 2 * ns < longest ? 2 * ns : longest;
}

int msi_wait_pause(msi_wait *wait, msi_patience *patience) {
  if (!wait->start_ns) wait->start_ns = msi_now();
  if (++wait->looks % LOOKS_PER_CLOCK && !wait->nap_ns) {
    RELAX();
    return 0;
  }
  int64_t now = msi_now(), waited = now - wait->start_ns;
  if (waited < patience->spin_ns) return 0;
  if (waited < patience->most_spin_ns + patience->yield_ns)
    yield(patience, now);
  else
    wait->nap_ns = nap(wait->nap_ns ? wait->nap_ns : FIRST_NAP_NS, patience->sleep_ns);
  return 1;
}

int msi_cores(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}
