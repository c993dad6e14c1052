#include "client/scale.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "client/change_wait.h"
#include "client/spare.h"

typedef struct msi_scaling {
  const mpiserve_service *service;
  int what; /* MPISERVE_START or MPISERVE_STOP */
  int64_t deadline;
  msi_change **changes; /* by choice; NULL: none was sent */
  int code;             /* of the first failure */
  char text[MPISERVE_TEXT_SIZE];
} msi_scaling;

static int count_serving(const mpiserve_service *service) {
  int n = 0;
  for (int i = 0; i < service->replicas; i++) n += msi_spare_serves(service->choices[i]);
  return n;
}

/* The caller learns each failure, with its rank, and the code of the first. */
static void note(msi_scaling *scaling, int i, int code) {
  if (!code) return;
  if (!scaling->code) scaling->code = code;
  msi_text_append(scaling->text, sizeof scaling->text, "; rank %d: %s",
                  scaling->service->choices[i]->path.head, mpiserve_last_error());
}

static void send(msi_scaling *scaling, int i) {
  const mpiserve_service *service = scaling->service;
  note(scaling, i,
       msi_change_submit(service->client, service->choices[i], scaling->what, NULL,
                         &scaling->changes[i]));
}

/* Returns how many replicas have done it. */
static int wait_for_all(msi_scaling *scaling) {
  const mpiserve_service *service = scaling->service;
  int done = 0;
  for (int i = 0; i < service->replicas; i++) {
    if (!scaling->changes[i]) continue;
    int code = msi_change_wait(service->client, scaling->changes[i], scaling->deadline);
    scaling->changes[i] = NULL;
    if (!code) service->balance.loads[i].suspended = scaling->what == MPISERVE_STOP;
    done += !code;
    note(scaling, i, code);
  }
  return done;
}

/* A replica whose model was unloaded answers with an error; one that is stopped passes requests on
 * to those that serve. Where this fails, the error of a request says what is wrong. */
static void stop_unloaded(msi_scaling *scaling) {
  const mpiserve_service *service = scaling->service;
  scaling->what = MPISERVE_STOP;
  for (int i = 0; i < service->replicas; i++)
    if (msi_spare_is_stopped(service->choices[i])) send(scaling, i);
  wait_for_all(scaling);
}

/* As many as are missing load at the same time; for each that cannot, the next one is asked. */
static int start(msi_scaling *scaling, int missing) {
  const mpiserve_service *service = scaling->service;
  int i = 0;
  do {
    for (int sent = 0; sent < missing && i < service->replicas; i++) {
      if (service->choices[i]->lost || msi_spare_serves(service->choices[i])) continue;
      send(scaling, i);
      sent++;
    }
    missing -= wait_for_all(scaling);
  } while (missing && i < service->replicas && scaling->code != MPISERVE_ETIMEOUT);
  if (!missing) {
    stop_unloaded(scaling);
    return MPISERVE_OK;
  }
  return msi_error(scaling->code ? scaling->code : MPISERVE_ESTATE,
                   "service '%s': %d more replicas were to serve, and no rank is left that can%s",
                   service->name, missing, scaling->text);
}

static int stop(msi_scaling *scaling, int surplus) {
  const mpiserve_service *service = scaling->service;
  for (int i = service->replicas; i-- && surplus;) {
    if (!msi_spare_serves(service->choices[i])) continue;
    send(scaling, i);
    surplus--;
  }
  wait_for_all(scaling);
  if (!scaling->code) return MPISERVE_OK;
  return msi_error(scaling->code, "service '%s' was not stopped everywhere%s", service->name,
                   scaling->text);
}

int msi_scale(const mpiserve_service *service, int replicas, double timeout) {
  if (replicas < 0 || replicas > service->replicas)
    return msi_error(MPISERVE_EARG,
                     "service '%s': %d replicas; it has %d, and %d spare ranks can serve it: "
                     "raise partition.spares",
                     service->name, replicas, service->planned,
                     service->replicas - service->planned);
  if (replicas > 1 && service->head && service->head->description.reproducible)
    return msi_error(MPISERVE_EARG,
                     "service '%s' is reproducible: which of %d replicas answers would depend on "
                     "time",
                     service->name, replicas);
  int missing = replicas - count_serving(service);
  msi_scaling scaling = {.service = service,
                         .what = missing > 0 ? MPISERVE_START : MPISERVE_STOP,
                         .deadline = msi_deadline(timeout)};
  scaling.changes = calloc((size_t)service->replicas, sizeof(msi_change *));
  if (!scaling.changes) return msi_error(MPISERVE_ENOMEM, "no memory to ask the replicas");
  int code = missing > 0 ? start(&scaling, missing) : stop(&scaling, -missing);
  free(scaling.changes);
  return code;
}
