#include "head/ticket_table.h"

#include <stdlib.h>

#include "base/error.h"

void msi_ticket_table_close(msi_ticket_table *table) {
  free(table->entries);
  *table = (msi_ticket_table){0};
}

int msi_ticket_table_reserve(msi_ticket_table *table, uint32_t more) {
  if (table->n + more <= table->capacity) return MPISERVE_OK;
  uint32_t capacity = 2 * (table->n + more);
  msi_ticket *entries = realloc(table->entries, capacity * sizeof *entries);
  if (!entries)
    return msi_error(MPISERVE_ENOMEM, "no memory for %u held requests", table->n + more);
  table->entries = entries;
  table->capacity = capacity;
  return MPISERVE_OK;
}

uint64_t msi_ticket_table_put(msi_ticket_table *table, const msi_ticket *held) {
  uint32_t at = table->idle, generation = 0;
  if (at == table->used) {
    table->idle = ++table->used;
  } else {
    generation = table->entries[at].generation;
    /* What is free ends where the entries that were never used begin. */
    table->idle = table->entries[at].next;
  }
  table->entries[at] = *held;
  table->entries[at].generation = generation;
  table->entries[at].taken = 1;
  table->n++;
  return (uint64_t)generation << 32 | (at + 1);
}

msi_ticket *msi_ticket_table_find(const msi_ticket_table *table, uint64_t id) {
  uint32_t at = (uint32_t)id - 1;
  if (!id || at >= table->used) return NULL;
  msi_ticket *held = &table->entries[at];
  return held->taken && held->generation == (uint32_t)(id >> 32) ? held : NULL;
}

msi_ticket *msi_ticket_table_any(const msi_ticket_table *table) {
  for (uint32_t i = 0; table->n && i < table->used; i++)
    if (table->entries[i].taken) return &table->entries[i];
  return NULL;
}

void msi_ticket_table_drop(msi_ticket_table *table, msi_ticket *held) {
  held->taken = 0;
  held->generation++;
  held->next = table->idle;
  table->idle = (uint32_t)(held - table->entries);
  table->n--;
}
