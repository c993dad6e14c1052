/* metrics: what this rank shows to other programs of its user on this node, at any time: who it is,
 * its counters, and where the numbers of its services lie. It is a segment that only this process
 * writes to. Others find it as a file "mpiserve-rank" in /proc/PID/fd, so nothing of it stays
 * behind. Its layout is that of mpiserve/observe/ranks.py. No MPI calls. */
#ifndef MSI_METRICS_H
#define MSI_METRICS_H

#include "base/segment.h"
#include "base/wait.h"
#include "mpiserve.h"

enum { MSI_METRICS_VERSION = 1, MSI_FIELDS = 40 };

/* A number of a service: where it lies in the record of the service, and its bytes. Readers find
 * numbers by name, so the record may change without a new version. */
typedef struct msi_field {
  char name[24];
  int32_t at, bytes;
} msi_field;

typedef struct msi_metrics {
  char magic[8];    /* "msi-rank" */
  char library[24]; /* mpiserve_version(): here in every version of this layout */
  int32_t version, bytes;
  int64_t run;              /* the same on all ranks of the session */
  int32_t rank, size, role; /* in the world */
  int32_t node;             /* the lowest rank of the world that is there */
  int32_t pid;
  int32_t part_fd; /* descriptor of its part of a profile; -1: nothing is measured */
  char host[MPISERVE_NAME_SIZE];
  int64_t since_1970_ns;                     /* of the wall clock, when the monotonic clock was 0 */
  int64_t launched_ns, opened_ns, closed_ns; /* by the monotonic clock; closed 0: it is open */
  /* Of a simulation rank: */
  mpiserve_counters counters;
  int64_t waits_since_ns; /* the last wait that was not short: its begin, */
  int64_t waits_seen_ns;  /* when it went on last, */
  int64_t waits_for;      /* and the rank of the head that it is for */
  /* Of an inference rank that has published: */
  int32_t services_fd; /* descriptor of a segment with a record of each service */
  int32_t n_services, record_bytes, n_fields;
  msi_field fields[MSI_FIELDS];
} msi_metrics;

/* What a session has of it. */
typedef struct msi_shown {
  msi_metrics *metrics; /* never NULL after msi_metrics_open() */
  msi_segment segment;
  msi_metrics hidden; /* where there can be no segment: nobody sees it, and the session works */
} msi_shown;

/* first says who the rank is, of which library, and when it was launched. */
void msi_metrics_open(msi_shown *shown, const msi_metrics *first);
void msi_metrics_close(msi_shown *shown);

/* A caller waits for a reply of a rank, and not for the first microseconds. */
static inline void msi_metrics_wait(msi_metrics *metrics, const msi_wait *wait, int64_t now_ns,
                                    int head) {
  metrics->waits_since_ns = wait->start_ns;
  metrics->waits_for = head;
  metrics->waits_seen_ns = now_ns;
}

#endif
