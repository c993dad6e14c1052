#include <mpiserve.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static mpiserve_spec row_of(const char *name, int64_t width) {
  mpiserve_spec spec = {.dtype = MPISERVE_FLOAT32, .ndim = 2, .shape = {-1, width}};
  strcpy(spec.name, name);
  return spec;
}

static const char *run(const mpiserve_engine *engine, const float *x, float *y, int64_t warm,
                       int64_t rounds, int64_t *samples) {
  static char text[MPISERVE_TEXT_SIZE];
  for (int64_t i = -warm; i < rounds; i++) {
    const void *inputs[] = {x};
    void *outputs[] = {y};
    int64_t begin = bench_now();
    if (engine->run(engine->state, 1, inputs, outputs, text, sizeof text)) return text;
    if (i >= 0) samples[i] = bench_now() - begin;
  }
  return NULL;
}

const char *bench_engine_sample(const char *library, const char *model, int64_t width, int64_t warm,
                                int64_t rounds, int64_t *samples) {
  mpiserve_description description = {.n_inputs = 1, .n_outputs = 1, .max_batch_rows = 1};
  description.inputs[0] = row_of("x", width);
  description.outputs[0] = row_of("y", width);
  mpiserve_engine engine;
  if (mpiserve_engine_load(library, model, &description, &engine)) return mpiserve_last_error();
  size_t bytes = (size_t)width * sizeof(float);
  float *x = calloc(1, bytes), *y = calloc(1, bytes);
  const char *failed = x && y ? run(&engine, x, y, warm, rounds, samples) : "no memory for a row";
  free(x);
  free(y);
  mpiserve_engine_close(&engine);
  return failed;
}
