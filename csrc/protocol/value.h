/* value: single numbers of tensors. No MPI calls. */
#ifndef MSI_VALUE_H
#define MSI_VALUE_H

#include <stddef.h>

/* Number i of data, which has a dtype that is no complex one, as the nearest double. */
double msi_value_at(int dtype, const void *data, size_t i);

#endif
