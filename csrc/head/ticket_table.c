#include "head/ticket_table.h"

#include <stdlib.h>

#include "base/error.h"

void msi_shelf_close(msi_shelf *shelf) {
  free(shelf->places);
  *shelf = (msi_shelf){0};
}

int msi_shelf_reserve(msi_shelf *shelf, uint32_t more) {
  if (shelf->n + more <= shelf->capacity) return MPISERVE_OK;
  uint32_t capacity = 2 * (shelf->n + more);
  msi_held *places = realloc(shelf->places, capacity * sizeof *places);
  if (!places) return msi_error(MPISERVE_ENOMEM, "no memory for %u held requests", shelf->n + more);
  shelf->places = places;
  shelf->capacity = capacity;
  return MPISERVE_OK;
}

uint64_t msi_shelf_put(msi_shelf *shelf, const msi_held *held) {
  uint32_t at = shelf->idle, generation = 0;
  if (at == shelf->used) {
    shelf->idle = ++shelf->used;
  } else {
    generation = shelf->places[at].generation;
    /* What is free ends where the places that were never used begin. */
    shelf->idle = shelf->places[at].next;
  }
  shelf->places[at] = *held;
  shelf->places[at].generation = generation;
  shelf->places[at].taken = 1;
  shelf->n++;
  return (uint64_t)generation << 32 | (at + 1);
}

msi_held *msi_shelf_find(const msi_shelf *shelf, uint64_t id) {
  uint32_t at = (uint32_t)id - 1;
  if (!id || at >= shelf->used) return NULL;
  msi_held *held = &shelf->places[at];
  return held->taken && held->generation == (uint32_t)(id >> 32) ? held : NULL;
}

msi_held *msi_shelf_any(const msi_shelf *shelf) {
  for (uint32_t i = 0; shelf->n && i < shelf->used; i++)
    if (shelf->places[i].taken) return &shelf->places[i];
  return NULL;
}

void msi_shelf_drop(msi_shelf *shelf, msi_held *held) {
  held->taken = 0;
  held->generation++;
  held->next = shelf->idle;
  shelf->idle = (uint32_t)(held - shelf->places);
  shelf->n--;
}
