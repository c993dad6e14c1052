/* aoti: engines of models that torch has compiled ahead of time (AOTInductor). Not a part of
 * libmpiserve: mpiserve/backends/torch/ahead_of_time.py compiles it when it is used first, against
 * the headers of the torch that is installed, whose stable C interface is all that it uses.
 *
 * The model is a shared library without further files. Its tensors are those of the description:
 * first the inputs, then the outputs, which it writes to. It returns None, or nothing. */
#define MPISERVE_NO_MPI
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_runtime/interface.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdio>
#include <cstring>
#include <new>

#include "mpiserve.h"

namespace {

struct Tensor {
  int32_t dtype;
  int64_t ndim, shape[MPISERVE_MAX_DIMS], strides[MPISERVE_MAX_DIMS];
};

struct Model {
  void *library = nullptr;
  AOTInductorModelContainerHandle container = nullptr;
  decltype(&AOTInductorModelContainerRunSingleThreaded) run = nullptr;
  decltype(&AOTInductorModelContainerDelete) free = nullptr;
  AOTIRuntimeError (*last_error)(const char **) = nullptr; /* of newer versions of torch */
  int n_inputs = 0, n_outputs = 0;
  bool has_rows = true; /* otherwise the tensors have the shapes of the signature */
  size_t n_results = 0; /* that torch counts: None is one, without a tensor */
  Tensor tensors[2 * MPISERVE_MAX_TENSORS];
};

constexpr int32_t NO_DTYPE = -1; /* torch counts from 0 */

int32_t dtype_of(int32_t dtype) {
  switch (dtype) {
    case MPISERVE_BOOL: return aoti_torch_dtype_bool();
    case MPISERVE_UINT8: return aoti_torch_dtype_uint8();
    case MPISERVE_INT8: return aoti_torch_dtype_int8();
    case MPISERVE_INT16: return aoti_torch_dtype_int16();
    case MPISERVE_INT32: return aoti_torch_dtype_int32();
    case MPISERVE_INT64: return aoti_torch_dtype_int64();
    case MPISERVE_FLOAT16: return aoti_torch_dtype_float16();
    case MPISERVE_BFLOAT16: return aoti_torch_dtype_bfloat16();
    case MPISERVE_FLOAT32: return aoti_torch_dtype_float32();
    case MPISERVE_FLOAT64: return aoti_torch_dtype_float64();
    case MPISERVE_UINT16: return aoti_torch_dtype_uint16();
    case MPISERVE_UINT32: return aoti_torch_dtype_uint32();
    case MPISERVE_UINT64: return aoti_torch_dtype_uint64();
    case MPISERVE_COMPLEX64: return aoti_torch_dtype_complex64();
    case MPISERVE_COMPLEX128: return aoti_torch_dtype_complex128();
    default: return NO_DTYPE;
  }
}

Tensor tensor_of(const mpiserve_spec &spec) {
  Tensor tensor{dtype_of(spec.dtype), spec.ndim, {}, {}};
  int64_t stride = 1;
  for (int i = spec.ndim - 1; i >= 0; i--) {
    tensor.shape[i] = spec.shape[i];
    tensor.strides[i] = stride;
    stride *= spec.shape[i];
  }
  return tensor;
}

const char *error_of(const Model &model) {
  const char *text = "";
  if (model.last_error) model.last_error(&text);
  return *text ? text : "the compiled model failed; torch has printed why";
}

/* Wraps the caller's memory. The model takes the handles, which copy nothing. */
int wrap(Model &model, int64_t rows, const void *const *inputs, void *const *outputs,
         AtenTensorHandle *handles) {
  for (int i = 0; i < model.n_inputs + model.n_outputs; i++) {
    Tensor &tensor = model.tensors[i];
    void *data = i < model.n_inputs ? const_cast<void *>(inputs[i]) : outputs[i - model.n_inputs];
    if (model.has_rows) tensor.shape[0] = rows;
    if (aoti_torch_create_tensor_from_blob(data, tensor.ndim, tensor.shape, tensor.strides, 0,
                                           tensor.dtype, aoti_torch_device_type_cpu(), 0,
                                           &handles[i])) {
      while (i-- > 0) aoti_torch_delete_tensor_object(handles[i]);
      return 1;
    }
  }
  return 0;
}

int run(void *state, int64_t rows, const void *const *inputs, void *const *outputs, char *text,
        size_t bytes) {
  Model &model = *static_cast<Model *>(state);
  AtenTensorHandle handles[2 * MPISERVE_MAX_TENSORS], result = nullptr;
  if (wrap(model, rows, inputs, outputs, handles))
    return snprintf(text, bytes, "torch could not wrap the tensors");
  size_t n = static_cast<size_t>(model.n_inputs + model.n_outputs);
  int failed = model.run(model.container, handles, n, &result, model.n_results, nullptr, nullptr);
  if (result) aoti_torch_delete_tensor_object(result);
  return failed ? snprintf(text, bytes, "%s", error_of(model)) : 0;
}

void close(void *state) {
  Model *model = static_cast<Model *>(state);
  if (model->container) model->free(model->container);
  if (model->library) dlclose(model->library);
  delete model;
}

template <class Function> int find(Model &model, const char *name, Function &function) {
  function = reinterpret_cast<Function>(dlsym(model.library, name));
  return !function;
}

int open(Model &model, const char *path, char *text, size_t bytes) {
  decltype(&AOTInductorModelContainerCreateWithDevice) create;
  decltype(&AOTInductorModelContainerGetNumInputs) count;
  decltype(&AOTInductorModelContainerGetNumOutputs) count_results;
  size_t n = 0;
  model.library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!model.library) return snprintf(text, bytes, "%s", dlerror());
  find(model, "AOTInductorGetLastError", model.last_error);
  if (find(model, "AOTInductorModelContainerCreateWithDevice", create) ||
      find(model, "AOTInductorModelContainerGetNumInputs", count) ||
      find(model, "AOTInductorModelContainerGetNumOutputs", count_results) ||
      find(model, "AOTInductorModelContainerRunSingleThreaded", model.run) ||
      find(model, "AOTInductorModelContainerDelete", model.free))
    return snprintf(text, bytes, "%s", dlerror());
  if (create(&model.container, 1, "cpu", nullptr) || count(model.container, &n) ||
      count_results(model.container, &model.n_results))
    return snprintf(text, bytes, "%s", error_of(model));
  /* The model would end the process if it got another number. */
  if (n == static_cast<size_t>(model.n_inputs + model.n_outputs) && model.n_results < 2) return 0;
  return snprintf(text, bytes, "%s takes %zu tensors and returns %zu", path, n, model.n_results);
}

} // namespace

extern "C" int mpiserve_engine_make(int version, const char *path, const mpiserve_description *d,
                                    mpiserve_engine *engine, char *text, size_t bytes) {
  if (version != MPISERVE_ENGINE_VERSION)
    return snprintf(text, bytes, "compiled for version %d of engines", MPISERVE_ENGINE_VERSION);
  Model *model = new (std::nothrow) Model;
  if (!model) return snprintf(text, bytes, "no memory for an engine");
  model->n_inputs = d->n_inputs;
  model->n_outputs = d->n_outputs;
  model->has_rows = d->inputs[0].ndim > 0 && d->inputs[0].shape[0] == -1;
  for (int i = 0; i < d->n_inputs; i++) model->tensors[i] = tensor_of(d->inputs[i]);
  for (int i = 0; i < d->n_outputs; i++) model->tensors[d->n_inputs + i] = tensor_of(d->outputs[i]);
  int code = 0;
  for (int i = 0; i < d->n_inputs + d->n_outputs && !code; i++)
    if (model->tensors[i].dtype == NO_DTYPE) code = snprintf(text, bytes, "a dtype unknown here");
  if (!code) code = open(*model, path, text, bytes);
  if (code) {
    close(model);
    return code;
  }
  *engine = mpiserve_engine{};
  engine->state = model;
  engine->run = run;
  engine->close = close;
  return 0;
}
