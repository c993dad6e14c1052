/* guests: gateways and trainers, for which a head waits only shortly when all others have left. */
#ifndef MSI_GUESTS_H
#define MSI_GUESTS_H

#include "head/serving.h"

/* Whether gateways may still be there after the last simulation rank; tells them that it has left.
 * Local. */
int msi_guests_stay(msi_serving *serving);

#endif
