#include "head/fit.h"

size_t msi_fit_find(const msi_inbox *inbox, const msi_entry *entry, msi_slot *slot,
                    const void **inputs, void **outputs) {
  const msi_side *in = &inbox->layout.inputs, *out = &inbox->layout.outputs;
  uint8_t *packed = slot->input;
  for (int i = 0; i < in->n; i++) {
    inputs[i] = msi_fit_input(inbox, entry, i, packed);
    packed += entry->rows * in->row_bytes[i];
  }
  packed = msi_slot_outputs(&inbox->layout, slot);
  for (int i = 0; i < out->n; i++) {
    outputs[i] = packed;
    if (entry->output_row == MSI_IN_SLOT)
      packed += entry->rows * out->row_bytes[i];
    else
      outputs[i] = msi_inbox_output(inbox, i, entry->output_row);
  }
  return (size_t)(packed - slot->output);
}
