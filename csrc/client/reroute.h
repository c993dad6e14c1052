/* again: a request that a head has turned away, because the service rests there. */
#ifndef MSI_AGAIN_H
#define MSI_AGAIN_H

#include "client/calls.h"

/* Aims it at another replica, whose line it then is to join; or the code that it ends with. */
int msi_again(msi_call *call);

#endif
