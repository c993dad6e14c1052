/* Sleeper and waker, with a futex that puts nobody to sleep. */
#define _GNU_SOURCE
#include "base/wait.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <sys/syscall.h>

#include "check.h"

static int slept, limited, woken;

/* The library's calls come here: the kernel's comparison, without the sleep. */
long syscall(long number, ...) {
  va_list arguments;
  va_start(arguments, number);
  const _Atomic uint32_t *word = va_arg(arguments, const _Atomic uint32_t *);
  int operation = va_arg(arguments, int);
  uint32_t value = va_arg(arguments, uint32_t);
  const void *limit = va_arg(arguments, const void *);
  va_end(arguments);
  if (number != SYS_futex) return errno = ENOSYS, -1;
  woken += operation == FUTEX_WAKE;
  if (operation != FUTEX_WAIT || atomic_load(word) != value) return 0;
  slept++;
  limited += limit != NULL;
  return 0;
}

typedef struct sleeper {
  msi_wait wait;
  msi_backoff backoff; /* 0: it sleeps at the first occasion */
  msi_wait_address address;
  _Atomic uint32_t word, flag;
} sleeper;

static void begin(sleeper *s, int same_word) {
  *s = (sleeper){0};
  s->address = same_word ? (msi_wait_address){&s->flag, &s->flag, 0, 1, 0}
                         : (msi_wait_address){&s->word, &s->flag, 1, 1, 0};
  slept = limited = woken = 0;
}

/* Looks that find nothing, until the pause yields or sleeps. */
static void look_in_vain(sleeper *s) {
  while (!msi_wait_pause(&s->wait, &s->backoff, &s->address)) continue;
}

static void test_the_flag_goes_up_before_the_last_look(void) {
  for (int same_word = 0; same_word < 2; same_word++) {
    sleeper s;
    begin(&s, same_word);
    look_in_vain(&s);
    CHECK(atomic_load(&s.flag) == 1);
    CHECK(slept == 0); /* the caller looks once more now */
    look_in_vain(&s);
    CHECK(slept == 1 && limited == 1);
  }
}

static void test_a_change_before_the_last_look_keeps_it_awake(void) {
  for (int same_word = 0; same_word < 2; same_word++) {
    sleeper s;
    begin(&s, same_word);
    look_in_vain(&s);
    atomic_store(&s.word, 1);
    msi_wait_wake(s.address.word, s.address.flag);
    CHECK(woken == 1 && atomic_load(&s.flag) == 0);
    look_in_vain(&s);
    CHECK(slept == 0);
  }
}

static void test_only_sleepers_are_woken(void) {
  sleeper s;
  begin(&s, 0);
  atomic_store(&s.word, 1);
  msi_wait_wake(s.address.word, s.address.flag);
  CHECK(woken == 0);
}

static void test_the_flag_is_down_after_the_wait(void) {
  sleeper s;
  begin(&s, 0);
  look_in_vain(&s);
  msi_wait_end(&s.wait, &s.address);
  CHECK(atomic_load(&s.flag) == 0);
  msi_wait_wake(s.address.word, s.address.flag);
  CHECK(woken == 0);
}

/* The last one of those that are waited for wakes it. */
static void test_a_flag_counts_who_comes(void) {
  sleeper s;
  begin(&s, 1);
  s.address.wakers = 3;
  look_in_vain(&s);
  CHECK(atomic_load(&s.flag) == 3);
  for (int come = 1; come <= 4; come++) {
    msi_wait_wake(s.address.word, s.address.flag);
    CHECK(atomic_load(&s.flag) == (come < 3 ? 3u - (unsigned)come : 0));
    CHECK(woken == (come >= 3));
  }
  look_in_vain(&s);
  CHECK(slept == 0);
}

/* Its look has found one, which may have come before the flag was up. */
static void test_a_flag_is_raised_again_when_fewer_are_missing(void) {
  sleeper s;
  begin(&s, 1);
  s.address.wakers = 3;
  look_in_vain(&s);
  s.address.wakers = 2;
  look_in_vain(&s);
  CHECK(atomic_load(&s.flag) == 2 && slept == 0);
  look_in_vain(&s);
  CHECK(slept == 1 && atomic_load(&s.flag) == 0);
}

static void test_nobody_sleeps_beyond_the_time(void) {
  sleeper s;
  begin(&s, 1);
  s.address.until_ns = msi_now() - 1;
  look_in_vain(&s);
  look_in_vain(&s);
  CHECK(slept == 0);
}

int main(void) {
  test_the_flag_goes_up_before_the_last_look();
  test_a_change_before_the_last_look_keeps_it_awake();
  test_only_sleepers_are_woken();
  test_the_flag_is_down_after_the_wait();
  test_a_flag_counts_who_comes();
  test_a_flag_is_raised_again_when_fewer_are_missing();
  test_nobody_sleeps_beyond_the_time();
  return check_result();
}
