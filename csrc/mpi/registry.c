#include "mpi/registry.h"

#include <string.h>

#include "base/error.h"
#include "protocol/tensor.h"

static int check_replica(const msi_head *a, const msi_head *b) {
  const mpiserve_description *p = &a->description, *q = &b->description;
  if (strcmp(p->name, q->name) || p->error || q->error) return MPISERVE_OK;
  msi_side pi, po, qi, qo;
  int code = msi_side_init(&pi, "input", p->n_inputs, p->inputs);
  if (!code) code = msi_side_init_outputs(&po, p);
  if (!code) code = msi_side_init(&qi, "input", q->n_inputs, q->inputs);
  if (!code) code = msi_side_init_outputs(&qo, q);
  if (code) return code;
  if (msi_side_equal(&pi, &qi) && msi_side_equal(&po, &qo) &&
      p->max_batch_rows == q->max_batch_rows && p->allow_empty == q->allow_empty)
    return MPISERVE_OK;
  return msi_error(MPISERVE_ECONFIG,
                   "service '%s': ranks %d and %d publish different signatures or limits", p->name,
                   a->rank, b->rank);
}

int msi_registry_check(const msi_world *world) {
  for (int i = 0; i < world->n_heads; i++)
    for (int j = 0; j < i; j++) {
      int code = check_replica(&world->heads[j], &world->heads[i]);
      if (code) return code;
    }
  return MPISERVE_OK;
}
