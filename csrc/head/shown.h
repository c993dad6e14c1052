/* shown: the numbers of the services of this rank that other programs may read: base/metrics.h. */
#ifndef MSI_HEAD_SHOWN_H
#define MSI_HEAD_SHOWN_H

#include "base/metrics.h"
#include "head/serving.h"

/* The brokers lie in memory that others may look at; says what is where. Local. */
void msi_serving_show(const msi_serving *serving, msi_metrics *metrics);

/* As mpiserve_placement_set() says. Local. */
int msi_show_placement(msi_serving *serving, int service, const mpiserve_placement *placement);

/* Of a service, what its description says. */
msi_label msi_shown_label(const mpiserve_description *description);

#endif
