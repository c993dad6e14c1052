#include "head/census.h"

enum { MISSES_ALLOWED = 8 }; /* batches without a request of the lane, one after the other */

void msi_census_join(msi_census *census, msi_lane *lane) {
  lane->missed = 0;
  if (lane->active || lane->gone) return;
  lane->active = 1;
  census->able++;
}

void msi_census_attach(msi_census *census, msi_lane *lane) {
  if (!census->suspended) msi_census_join(census, lane);
}

void msi_census_uncount(msi_census *census, msi_lane *lane) {
  if (lane->guest) return;
  census->able -= lane->active;
  lane->active = 0;
}

void msi_census_queue(msi_census *census, msi_lane *lane) { census->asked += !lane->queued++; }

void msi_census_unqueue(msi_census *census, msi_lane *lane) {
  census->asked -= !--lane->queued;
  if (!lane->queued && lane->passing) msi_census_uncount(census, lane);
}

void msi_census_depart(msi_census *census, msi_lane *lane) {
  lane->passing = 1;
  if (!lane->queued) msi_census_uncount(census, lane);
}

void msi_census_note_missing(msi_census *census, const msi_inbox *inbox) {
  for (uint32_t l = 0; l < inbox->layout.lanes; l++) {
    msi_lane *lane = &inbox->lanes[l];
    if (lane->active && !lane->queued && ++lane->missed >= MISSES_ALLOWED)
      msi_census_uncount(census, lane);
  }
}

void msi_census_uncount_all(msi_census *census, const msi_inbox *inbox) {
  for (uint32_t l = 0; l < inbox->layout.lanes; l++) msi_census_uncount(census, &inbox->lanes[l]);
}
