#include "head/guests.h"

static const int64_t GUESTS_NS = 5000000000; /* that guests have to leave after all others */

/* Guests see by the states of the replicas that the session ends, and take their replies. One
 * that is stopped is not waited for. */
int msi_guests_stay(msi_serving *serving) {
  int i = 0;
  while (i < serving->n && !serving->brokers[i].guests) i++;
  if (i == serving->n) return 0;
  int64_t now = msi_now();
  if (!serving->parted_ns) {
    for (int k = 0; k < serving->n; k++) msi_life_enter(&serving->brokers[k].life, MPISERVE_GONE);
    serving->parted_ns = now;
  }
  return now - serving->parted_ns < GUESTS_NS;
}
