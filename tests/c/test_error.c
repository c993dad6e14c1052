#include "base/error.h"

#include <pthread.h>

#include "check.h"

static void test_every_code_has_a_text_of_its_own(void) {
  for (int code = MPISERVE_OK; code >= MPISERVE_ECHANGE; code--) {
    CHECK(mpiserve_strerror(code)[0]);
    CHECK(strcmp(mpiserve_strerror(code), "unknown code"));
    for (int other = MPISERVE_OK; other > code; other--)
      CHECK(strcmp(mpiserve_strerror(code), mpiserve_strerror(other)));
  }
}

static void test_a_number_that_is_no_code(void) {
  CHECK(!strcmp(mpiserve_strerror(1), "unknown code"));
  CHECK(!strcmp(mpiserve_strerror(MPISERVE_ECHANGE - 1), "unknown code"));
}

static void test_the_code_comes_back_and_the_text_stays(void) {
  CHECK(!strcmp(mpiserve_last_error(), ""));
  CHECK(msi_error(MPISERVE_EROWS, "rows is %d", 7) == MPISERVE_EROWS);
  CHECK(!strcmp(mpiserve_last_error(), "rows is 7"));
  CHECK(msi_error(MPISERVE_EARG, "%s", "second") == MPISERVE_EARG);
  CHECK(!strcmp(mpiserve_last_error(), "second"));
}

static void test_a_layer_above_sets_the_text(void) {
  CHECK(mpiserve_error(MPISERVE_ESHAPE, "100%s") == MPISERVE_ESHAPE);
  CHECK(!strcmp(mpiserve_last_error(), "100%s"));
  CHECK(mpiserve_error(MPISERVE_EARG, mpiserve_last_error()) == MPISERVE_EARG);
  CHECK(!strcmp(mpiserve_last_error(), "100%s"));
  CHECK(mpiserve_error(MPISERVE_EARG, NULL) == MPISERVE_EARG);
  CHECK(!strcmp(mpiserve_last_error(), mpiserve_strerror(MPISERVE_EARG)));
}

static void test_a_text_that_is_too_long_is_cut(void) {
  static char text[8 * MPISERVE_TEXT_SIZE];
  memset(text, 'x', sizeof text - 1);
  msi_error(MPISERVE_EMPI, "%s", text);
  size_t length = strlen(mpiserve_last_error());
  CHECK(length >= MPISERVE_TEXT_SIZE - 1 && length < sizeof text - 1);
  CHECK(!strncmp(mpiserve_last_error(), text, length));
}

static void test_a_cut_is_between_two_characters(void) {
  const char *text = "a\xc3\xa4\xe2\x98\x83\xf0\x9f\x98\x80"; /* of 1, 2, 3 and 4 bytes */
  const size_t kept[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10};
  for (size_t most = 0; most < sizeof kept / sizeof *kept; most++)
    CHECK(msi_text_bytes(text, most) == kept[most]);
}

static void *fail_in_thread(void *unused) {
  CHECK(!strcmp(mpiserve_last_error(), ""));
  msi_error(MPISERVE_EMPI, "of the thread");
  CHECK(!strcmp(mpiserve_last_error(), "of the thread"));
  return unused;
}

static void test_each_thread_has_its_own_text(void) {
  pthread_t thread;
  msi_error(MPISERVE_EARG, "of main");
  CHECK(!pthread_create(&thread, NULL, fail_in_thread, NULL));
  pthread_join(thread, NULL);
  CHECK(!strcmp(mpiserve_last_error(), "of main"));
}

int main(void) {
  test_every_code_has_a_text_of_its_own();
  test_a_number_that_is_no_code();
  test_the_code_comes_back_and_the_text_stays();
  test_a_layer_above_sets_the_text();
  test_a_text_that_is_too_long_is_cut();
  test_a_cut_is_between_two_characters();
  test_each_thread_has_its_own_text();
  return check_result();
}
