/* Tickets: found until they end, void afterwards, and their places used again. */
#include "check.h"
#include "head/ticket_table.h"

enum { MANY = 100 };

static uint64_t put(msi_shelf *shelf, uint32_t rows) {
  msi_held held = {.entry = {.rows = rows}};
  CHECK(!msi_shelf_reserve(shelf, 1));
  return msi_shelf_put(shelf, &held);
}

static void test_a_ticket_is_found_until_it_ends(void) {
  msi_shelf shelf = {0};
  uint64_t ids[MANY];
  for (uint32_t i = 0; i < MANY; i++) ids[i] = put(&shelf, i);
  CHECK(shelf.n == MANY);
  for (uint32_t i = 0; i < MANY; i++) CHECK(msi_shelf_find(&shelf, ids[i])->entry.rows == i);
  for (uint32_t i = 0; i < MANY; i += 2) msi_shelf_drop(&shelf, msi_shelf_find(&shelf, ids[i]));
  for (uint32_t i = 0; i < MANY; i++) CHECK(!msi_shelf_find(&shelf, ids[i]) == !(i % 2));
  CHECK(shelf.n == MANY / 2);
  msi_shelf_close(&shelf);
}

static void test_places_are_used_again_but_not_tickets(void) {
  msi_shelf shelf = {0};
  uint64_t first = put(&shelf, 1), second = put(&shelf, 2);
  for (uint32_t i = 0; i < MANY; i++) {
    msi_shelf_drop(&shelf, msi_shelf_find(&shelf, first));
    uint64_t next = put(&shelf, i);
    CHECK(next != first && !msi_shelf_find(&shelf, first));
    CHECK(msi_shelf_find(&shelf, next)->entry.rows == i);
    first = next;
  }
  CHECK(shelf.used == 2 && msi_shelf_find(&shelf, second)->entry.rows == 2);
  msi_shelf_close(&shelf);
}

static void test_what_is_none_is_not_found(void) {
  msi_shelf shelf = {0};
  CHECK(!msi_shelf_find(&shelf, 0) && !msi_shelf_find(&shelf, 1) && !msi_shelf_any(&shelf));
  uint64_t id = put(&shelf, 1);
  CHECK(msi_shelf_any(&shelf) == msi_shelf_find(&shelf, id));
  CHECK(!msi_shelf_find(&shelf, id + 1));
  msi_shelf_drop(&shelf, msi_shelf_find(&shelf, id));
  CHECK(!msi_shelf_any(&shelf) && !msi_shelf_find(&shelf, id));
  msi_shelf_close(&shelf);
}

int main(void) {
  test_a_ticket_is_found_until_it_ends();
  test_places_are_used_again_but_not_tickets();
  test_what_is_none_is_not_found();
  return check_result();
}
