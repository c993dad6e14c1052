/* timing: where the time of a request goes, as its client sees it. Only with MSI_PROFILED. */
#ifndef MSI_TIMING_H
#define MSI_TIMING_H

#include "client/state.h"

/* Gives the services of a client their parts of a profile. */
void msi_timing_open(msi_client *client, msi_profile *profile);

/* A request is about to be queued. blocks: its caller waits from submit on. */
void msi_timing_begin(msi_client *client, msi_call *call, int blocks);

/* It is about to be sent; it is sent. */
void msi_timing_send(msi_call *call);
void msi_timing_sent(msi_call *call);

/* Its reply is in a slot; it has ended, with results or without. */
void msi_timing_seen(msi_call *call, int slot);
void msi_timing_ended(msi_call *call);

/* Its caller begins to wait, or gives up for now. */
void msi_timing_enter(msi_call *call, double timeout);
void msi_timing_leave(msi_call *call, double timeout);

/* It goes to another replica, and went to this rank before. */
void msi_timing_moved(const msi_client *client, const msi_call *call, int from);

/* Its caller has it, with this code. */
void msi_timing_report(msi_client *client, msi_call *call, int code);

#endif
