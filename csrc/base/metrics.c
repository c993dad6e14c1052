#define _GNU_SOURCE
#include "base/metrics.h"

#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/peer.h"

static int64_t wall_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void fill(msi_metrics *metrics) {
  msi_identity own = msi_identity_own();
  metrics->pid = own.pid;
  memcpy(metrics->host, own.host, sizeof metrics->host);
  metrics->opened_ns = msi_now();
  metrics->since_1970_ns = wall_now() - metrics->opened_ns;
  metrics->part_fd = metrics->services_fd = -1;
  metrics->version = MSI_METRICS_VERSION;
  metrics->bytes = sizeof *metrics;
}

/* Readers may come at any time: the magic is last. */
void msi_metrics_open(msi_shown *shown, const msi_metrics *first) {
  int hidden = msi_segment_open_shown(&shown->segment, sizeof *first) != MPISERVE_OK;
  msi_metrics *metrics = hidden ? &shown->hidden : (msi_metrics *)shown->segment.memory;
  *metrics = *first;
  fill(metrics);
  atomic_thread_fence(memory_order_release);
  memcpy(metrics->magic, "msi-rank", sizeof metrics->magic);
  shown->metrics = metrics;
}

void msi_metrics_close(msi_shown *shown) {
  if (!shown->metrics) return;
  shown->metrics->closed_ns = msi_now();
  msi_segment_close(&shown->segment);
  shown->metrics = &shown->hidden;
}
