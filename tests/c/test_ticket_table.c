/* Tickets: found until they end, void afterwards, and their places used again. */
#include "check.h"
#include "head/ticket_table.h"

enum { MANY = 100 };

static uint64_t put(msi_ticket_table *table, uint32_t rows) {
  msi_ticket held = {.entry = {.rows = rows}};
  CHECK(!msi_ticket_table_reserve(table, 1));
  return msi_ticket_table_put(table, &held);
}

static void test_a_ticket_is_found_until_it_ends(void) {
  msi_ticket_table table = {0};
  uint64_t ids[MANY];
  for (uint32_t i = 0; i < MANY; i++) ids[i] = put(&table, i);
  CHECK(table.n == MANY);
  for (uint32_t i = 0; i < MANY; i++) CHECK(msi_ticket_table_find(&table, ids[i])->entry.rows == i);
  for (uint32_t i = 0; i < MANY; i += 2)
    msi_ticket_table_drop(&table, msi_ticket_table_find(&table, ids[i]));
  for (uint32_t i = 0; i < MANY; i++) CHECK(!msi_ticket_table_find(&table, ids[i]) == !(i % 2));
  CHECK(table.n == MANY / 2);
  msi_ticket_table_close(&table);
}

static void test_places_are_used_again_but_not_tickets(void) {
  msi_ticket_table table = {0};
  uint64_t first = put(&table, 1), second = put(&table, 2);
  for (uint32_t i = 0; i < MANY; i++) {
    msi_ticket_table_drop(&table, msi_ticket_table_find(&table, first));
    uint64_t next = put(&table, i);
    CHECK(next != first && !msi_ticket_table_find(&table, first));
    CHECK(msi_ticket_table_find(&table, next)->entry.rows == i);
    first = next;
  }
  CHECK(table.used == 2 && msi_ticket_table_find(&table, second)->entry.rows == 2);
  msi_ticket_table_close(&table);
}

static void test_what_is_none_is_not_found(void) {
  msi_ticket_table table = {0};
  CHECK(!msi_ticket_table_find(&table, 0) && !msi_ticket_table_find(&table, 1) &&
        !msi_ticket_table_any(&table));
  uint64_t id = put(&table, 1);
  CHECK(msi_ticket_table_any(&table) == msi_ticket_table_find(&table, id));
  CHECK(!msi_ticket_table_find(&table, id + 1));
  msi_ticket_table_drop(&table, msi_ticket_table_find(&table, id));
  CHECK(!msi_ticket_table_any(&table) && !msi_ticket_table_find(&table, id));
  msi_ticket_table_close(&table);
}

int main(void) {
  test_a_ticket_is_found_until_it_ends();
  test_places_are_used_again_but_not_tickets();
  test_what_is_none_is_not_found();
  return check_result();
}
