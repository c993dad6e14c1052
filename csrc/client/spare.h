/* spare: replicas that serve nothing until they are needed. */
#ifndef MSI_CLIENT_SPARE_H
#define MSI_CLIENT_SPARE_H

#include "client/change.h"
#include "client/state.h"

/* Does the replica answer, or will it soon? Is it a spare, or stopped? They read its state. */
int msi_spare_serves(msi_endpoint *endpoint);
int msi_spare_is_stopped(msi_endpoint *endpoint);

/* The choice for a request of so many rows, where the first idea is a suspended one. Its state is
 * read: one that is stopped, or that loads while others answer, is passed over. */
int msi_spare_choose(mpiserve_service *service, int64_t rows, int chosen);

/* The same after choice i has turned the request away; -1: none serves. */
int msi_spare_another(mpiserve_service *service, int i, int64_t rows, int chosen);

/* A head has died, or has stopped: a spare is to take its place for each service that it served. */
void msi_spare_replace(msi_client *client, const msi_endpoint *dead);

/* A head has turned a request away. If it lives, and its service has failed there, a spare is to
 * take its place. */
void msi_spare_see_failure(msi_client *client, const msi_call *call);

/* Takes the reply to any change. After a spare has refused, or died, the next one is asked. */
void msi_spare_replied(msi_client *client, msi_change *change, int code);

#endif
