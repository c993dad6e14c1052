#include "head/shown.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

#define FIELD(name, member) \
  {name, (int32_t)offsetof(msi_broker, member), (int32_t)sizeof(((msi_broker *)0)->member)}

/* Their names are those of mpiserve/observe/ranks.py. Times are of the monotonic clock, but those
 * of life, which are since 1970. */
static const msi_field FIELDS[] = {
    FIELD("name", label.name),
    FIELD("replica", label.replica),
    FIELD("spare", label.spare),
    FIELD("error", label.error),
    FIELD("max_batch_rows", label.max_batch_rows),
    FIELD("max_queue_rows", label.max_queue_rows),
    FIELD("counters", counters),
    FIELD("state", life.state),
    FIELD("state_ns", life.last_ns),
    FIELD("launched_ns", life.launched_ns),
    FIELD("ready_ns", life.ready_ns),
    FIELD("queue_requests", queue.n),
    FIELD("queue_rows", queue.rows),
    FIELD("batch_open", open),
    FIELD("batch_ns", closed_ns),
    FIELD("batch_requests", assembly.n),
    FIELD("batch_rows", assembly.batch.rows),
    FIELD("held", tickets.n),
    FIELD("clients", remaining),
    FIELD("able", census.able),
    FIELD("asked", census.asked),
    FIELD("placement", placement),
};

msi_label msi_shown_label(const mpiserve_description *description) {
  msi_label label = {.replica = description->replica,
                     .spare = description->spare,
                     .error = description->error,
                     .max_batch_rows = description->max_batch_rows,
                     .max_queue_rows = description->max_queue_rows};
  snprintf(label.name, sizeof label.name, "%s", description->name);
  return label;
}

int msi_show_placement(msi_serving *serving, int service, const mpiserve_placement *placement) {
  if (service < 0 || service >= serving->n)
    return msi_error(MPISERVE_EARG, "service %d of %d", service, serving->n);
  if (placement->side != MPISERVE_SIDE_LOCAL && placement->side != MPISERVE_SIDE_REMOTE)
    return msi_error(MPISERVE_EARG, "side %lld is no mpiserve_side", (long long)placement->side);
  serving->brokers[service].placement = *placement;
  return MPISERVE_OK;
}

void msi_serving_show(const msi_serving *serving, msi_metrics *metrics) {
  _Static_assert(sizeof FIELDS <= sizeof metrics->fields, "there is room for all");
  memcpy(metrics->fields, FIELDS, sizeof FIELDS);
  metrics->n_fields = sizeof FIELDS / sizeof *FIELDS;
  metrics->n_services = serving->n;
  metrics->record_bytes = sizeof(msi_broker);
  /* Readers take what is there for whole once they see the descriptor. */
  atomic_thread_fence(memory_order_release);
  metrics->services_fd = serving->memory.fd;
}
