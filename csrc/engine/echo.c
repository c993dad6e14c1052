#include <stdlib.h>

#include "base/error.h"
#include "engine/engine.h"
#include "protocol/slot.h"

/* Of an echo: how many bytes it copies a row. */
typedef struct echo {
  int n;
  size_t row_bytes[MPISERVE_MAX_TENSORS];
} echo;

/* Where outputs lie on their inputs there is nothing to do. */
static int run(void *state, int64_t rows, const void *const *inputs, void *const *outputs,
               char *text, size_t bytes) {
  const echo *e = state;
  (void)text, (void)bytes;
  for (int i = 0; i < e->n; i++)
    if (outputs[i] != inputs[i]) msi_copy(outputs[i], inputs[i], (size_t)rows * e->row_bytes[i]);
  return 0;
}

static int check(const mpiserve_description *d, echo *e) {
  msi_side in, out;
  int code = msi_side_init(&in, "input", d->n_inputs, d->inputs);
  if (!code) code = msi_side_init(&out, "output", d->n_outputs, d->outputs);
  for (int i = 0; !code && i < out.n; i++) {
    if (i >= in.n || in.row_bytes[i] != out.row_bytes[i])
      return msi_error(MPISERVE_ECONFIG, "service '%s': echo needs outputs of the inputs' sizes",
                       d->name);
    e->row_bytes[i] = out.row_bytes[i];
    e->n = i + 1;
  }
  return code;
}

int msi_engine_echo(const mpiserve_description *description, mpiserve_engine *engine) {
  echo e = {0}, *state;
  int code = check(description, &e);
  if (code) return code;
  state = malloc(sizeof *state);
  if (!state) return msi_error(MPISERVE_ENOMEM, "no memory for an engine");
  *state = e;
  *engine = (mpiserve_engine){.state = state, .run = run, .close = free, .by_request = 1};
  return MPISERVE_OK;
}
