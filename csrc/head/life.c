#define _GNU_SOURCE
#include "head/life.h"

#include <time.h>

static int64_t wall_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Whoever reads a state reads nothing else: no order is needed. */
static void enter_at(msi_life *life, int state, int64_t wall_ns) {
  life->last_ns = wall_ns > life->last_ns ? wall_ns : life->last_ns + 1;
  life->state = state;
  if (state == MPISERVE_LAUNCHED && !life->launched_ns) life->launched_ns = life->last_ns;
  if (state == MPISERVE_READY && !life->ready_ns) life->ready_ns = life->last_ns;
  for (int i = 0; i < life->n; i++)
    atomic_store_explicit(&life->headers[i]->entered_ns[state], life->last_ns,
                          memory_order_relaxed);
}

void msi_life_enter(msi_life *life, int state) { enter_at(life, state, wall_now()); }

void msi_life_begin(msi_life *life, const msi_inbox *inboxes, int64_t launched_ns,
                    int64_t loading_ns, int error) {
  *life = (msi_life){.since_1970_ns = wall_now() - msi_now()};
  for (int t = 0; t < MSI_TRANSPORTS; t++)
    if (inboxes[t].layout.lanes)
      life->headers[life->n++] =
          (msi_section_header *)(inboxes[t].memory + inboxes[t].layout.header_at);
  enter_at(life, MPISERVE_LAUNCHED, launched_ns + life->since_1970_ns);
  enter_at(life, MPISERVE_LOADING, loading_ns + life->since_1970_ns);
  msi_life_enter(life, error ? MPISERVE_FAILED : MPISERVE_READY);
}
