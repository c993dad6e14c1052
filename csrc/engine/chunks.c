#include "engine/chunks.h"

int msi_engine_run_chunks(const mpiserve_engine *engine, int64_t rows, const void **inputs,
                          void **outputs, int n_inputs, int n_outputs, const size_t *in_bytes,
                          const size_t *out_bytes, char *text, size_t bytes) {
  int64_t chunk = engine->chunk_rows > 0 ? engine->chunk_rows : rows, left;
  for (int64_t begin = 0; (left = rows - begin) > 0; begin += chunk) {
    int failed =
        engine->run(engine->state, left < chunk ? left : chunk, inputs, outputs, text, bytes);
    if (failed) return failed;
    for (int i = 0; i < n_inputs; i++)
      inputs[i] = (const char *)inputs[i] + (size_t)chunk * in_bytes[i];
    for (int i = 0; i < n_outputs; i++)
      outputs[i] = (char *)outputs[i] + (size_t)chunk * out_bytes[i];
  }
  return 0;
}
