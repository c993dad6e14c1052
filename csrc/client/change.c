#include "client/change.h"

#include <stdio.h>
#include <stdlib.h>

msi_change *msi_change_begin(msi_client *client, msi_endpoint *endpoint, int what,
                             const char *version) {
  msi_change *change = calloc(1, sizeof *change);
  if (!change) return NULL;
  change->message.type = MESSAGE_CHANGE;
  change->message.endpoint = endpoint;
  change->what = what;
  snprintf(change->version, sizeof change->version, "%s", version ? version : "");
  change->next = client->changes;
  client->changes = change;
  return change;
}

int msi_change_send(msi_change *change) {
  change->sent = 1;
  return msi_endpoint_send(change->message.endpoint, MSI_CHANGE, 0, change->what, change->version,
                           &change->message);
}

void msi_change_replied(msi_client *client, msi_change *change, int code) {
  change->message.code = code;
  change->done = 1;
  if (change->message.abandoned) msi_change_end(client, change);
}

void msi_change_end(msi_client *client, msi_change *change) {
  msi_change **at = &client->changes;
  while (*at != change) at = &(*at)->next;
  *at = change->next;
  free(change);
}

void msi_change_end_all(msi_client *client) {
  while (client->changes) msi_change_end(client, client->changes);
}
