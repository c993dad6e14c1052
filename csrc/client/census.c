#include "client/census.h"

int msi_assignment_changes(const mpiserve_service *service, int chosen) {
  const msi_load *loads = service->balance.loads;
  int is_busy = loads[service->assignment].rows > 0;
  return chosen != service->assignment && !is_busy && !loads[chosen].suspended;
}

/* Batches of the old replica need not wait for us. If all slots there are taken by what it has
 * not answered yet, its census finds out by itself. */
int msi_assignment_move(mpiserve_service *service, int chosen) {
  msi_endpoint *old = service->choices[service->assignment];
  service->assignment = chosen;
  if (!msi_endpoint_can_send(old)) return MPISERVE_OK;
  return msi_endpoint_send(old, MSI_DEPART, 0, -1, NULL, NULL);
}

void msi_assignment_aim(mpiserve_service *service, msi_call *call, int64_t rows, int chosen) {
  call->message.endpoint = service->choices[chosen];
  call->load = &service->balance.loads[chosen];
  call->kind = chosen == service->assignment ? MSI_INFER : MSI_VISIT;
  if (call->piece) call->kind = call->piece;
  msi_balance_sent(&service->balance, chosen, rows);
}

/* A head counts no client of a service that is suspended there. An assignment that is busy with
 * other requests of ours goes on counting us. */
void msi_assignment_aim_again(mpiserve_service *service, msi_call *call, int chosen) {
  if (service->balance.loads[service->assignment].suspended) service->assignment = chosen;
  msi_assignment_aim(service, call, call->payload.rows, chosen);
}
