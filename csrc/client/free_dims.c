#include "client/free_dims.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

int msi_free_dims_take(msi_call *call, const mpiserve_options *options) {
  const msi_layout *layout = &call->service->endpoint->layout;
  msi_shapes *shapes = call->payload.shapes;
  if (!shapes) shapes = call->payload.shapes = malloc(sizeof *shapes); /* kept with the call */
  if (!shapes) return msi_error(MPISERVE_ENOMEM, "no memory for the shapes of a request");
  memcpy(shapes->input_dims, layout->inputs.given->dims, sizeof shapes->input_dims);
  shapes->wanted = *layout->outputs.given;
  msi_side_of_dims(&layout->inputs, shapes->input_dims, &shapes->inputs);
  shapes->outputs = layout->outputs;
  shapes->result_shapes = options ? options->result_shapes : NULL;
  return MPISERVE_OK;
}

static int64_t elements(int ndim, const int64_t *dims) {
  int64_t n = 1;
  for (int d = 0; d < ndim; d++) n *= dims[d];
  return n;
}

static int does_not_fit(const msi_call *call, const mpiserve_spec *spec, const int64_t *found,
                        const int64_t *given, int any) {
  char text[MPISERVE_TEXT_SIZE] = "";
  for (int d = 0; d < spec->ndim; d++)
    msi_text_append(text, sizeof text, "%s%lld", d ? ", " : "[", (long long)found[d]);
  msi_text_append(text, sizeof text, any ? "], more than the room of [" : "], and the array has [");
  for (int d = 0; d < spec->ndim; d++)
    msi_text_append(text, sizeof text, "%s%lld", d ? ", " : "", (long long)given[d]);
  return msi_error(MPISERVE_ESHAPE, "service '%s', output '%s': the result has %s]",
                   call->service->name, spec->name, text);
}

/* Has the caller room for a result, or just this shape if it wants no other? */
static int check_room(const msi_call *call) {
  const msi_shapes *shapes = call->payload.shapes;
  int any = shapes->result_shapes != NULL;
  for (int i = 0; i < shapes->outputs.n; i++) {
    const mpiserve_spec *spec = &shapes->outputs.specs[i];
    const int64_t *dims = shapes->found[i], *room = shapes->wanted.shapes[i];
    size_t bytes = sizeof *dims * (size_t)spec->ndim;
    if (any ? elements(spec->ndim, dims) > elements(spec->ndim, room) : memcmp(dims, room, bytes))
      return does_not_fit(call, spec, dims, room, any);
  }
  return MPISERVE_OK;
}

static void tell_shapes(const msi_shapes *shapes, const int64_t *found) {
  for (int i = 0; i < shapes->outputs.n && shapes->result_shapes; i++)
    memcpy(shapes->result_shapes + (size_t)shapes->wanted.position[i] * MPISERVE_MAX_DIMS,
           found + (size_t)i * MPISERVE_MAX_DIMS,
           sizeof *found * (size_t)shapes->outputs.specs[i].ndim);
}

/* What a head has written is checked like all that others can write to: once, after a copy. */
static int read_dims(const msi_call *call, int slot) {
  const msi_endpoint *endpoint = call->message.endpoint;
  const msi_side *side = &endpoint->layout.outputs;
  uint32_t dims[MPISERVE_MAX_FREE];
  msi_slot *in = &endpoint->path.slots[slot];
  const volatile uint32_t *from = (uint32_t *)msi_slot_outputs(&endpoint->layout, in);
  for (int i = 0; i < side->n_free; i++) dims[i] = from[i];
  if (!msi_side_has_dims(side, dims))
    return msi_error(MPISERVE_ESHAPE, "service '%s': the shape of a result is beyond max_shape",
                     call->service->name);
  msi_side_of_dims(side, dims, &call->payload.shapes->outputs);
  msi_side_shapes(side, call->payload.rows, dims, call->payload.shapes->found[0]);
  return check_room(call);
}

int msi_free_dims_results(msi_call *call, int slot) {
  msi_shapes *shapes = call->payload.shapes;
  if (!call->payload.rows) { /* the model has not seen it */
    tell_shapes(shapes, shapes->wanted.shapes[0]);
    return MPISERVE_OK;
  }
  int code = read_dims(call, slot);
  if (!code)
    code = msi_endpoint_outputs(call->message.endpoint, slot, &call->payload, &shapes->outputs);
  if (!code) tell_shapes(shapes, shapes->found[0]);
  if (code && code != MSI_NOT_YET)
    snprintf(call->message.text, sizeof call->message.text, "%s", mpiserve_last_error());
  return code;
}
