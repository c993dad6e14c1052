/* A library of engines: the model is a factor, which negative inputs have none for. A second output
 * is half of the number of columns, in each row. */
#define MPISERVE_NO_MPI
#include <stdio.h>
#include <stdlib.h>

#include "mpiserve.h"

typedef struct toy {
  double factor;
  int64_t columns;
  int n_outputs;
} toy;

static int run(void *state, int64_t rows, const void *const *inputs, void *const *outputs,
               char *text, size_t bytes) {
  const toy *t = state;
  const double *x = inputs[0];
  double *y = outputs[0];
  for (int64_t i = 0; i < rows * t->columns; i++)
    if (x[i] < 0) return snprintf(text, bytes, "%g is negative", x[i]);
  for (int64_t i = 0; i < rows * t->columns; i++) y[i] = t->factor * x[i];
  float *half = t->n_outputs > 1 ? outputs[1] : NULL;
  for (int64_t i = 0; i < rows && half; i++) half[i] = (float)t->columns / 2;
  return 0;
}

int mpiserve_engine_make(int version, const char *model, const mpiserve_description *d,
                         mpiserve_engine *engine, char *text, size_t bytes) {
  if (version != MPISERVE_ENGINE_VERSION) return snprintf(text, bytes, "version %d", version);
  toy t = {atof(model), d->inputs[0].shape[1], d->n_outputs}, *state = malloc(sizeof t);
  if (!t.factor || !state) {
    free(state);
    return snprintf(text, bytes, "'%s' is no factor", model);
  }
  *state = t;
  *engine = (mpiserve_engine){.state = state, .run = run, .close = free};
  return 0;
}
