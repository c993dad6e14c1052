#define _GNU_SOURCE
#include "base/launcher.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum { LONG = 20 };

/* The rank: it tells its number when it watches, then waits for its end. */
static void be_rank(int handled) {
  pid_t own = getpid();
  if (handled) signal(SIGTERM, SIG_IGN);
  alarm(LONG);
  msi_launcher_watch();
  if (write(STDOUT_FILENO, &own, sizeof own) == sizeof own)
    for (;;) pause();
  _exit(2);
}

/* A process of this name that starts a rank, is killed, and so leaves it to this process. Returns
 * the rank, whose output goes to /dev/null but for its number. */
static pid_t orphan(const char *name, int handled) {
  int numbers[2];
  pid_t rank = 0;
  if (pipe(numbers)) return -1;
  pid_t launcher = fork();
  if (!launcher) {
    prctl(PR_SET_NAME, name);
    dup2(numbers[1], STDOUT_FILENO);
    if (!freopen("/dev/null", "w", stderr)) _exit(2);
    if (!fork()) be_rank(handled);
    for (;;) pause();
  }
  CHECK(read(numbers[0], &rank, sizeof rank) == sizeof rank);
  kill(launcher, SIGKILL);
  waitpid(launcher, NULL, 0);
  close(numbers[0]);
  close(numbers[1]);
  return rank;
}

/* How a rank ended within so many seconds; -1: it did not, and is killed. */
static int end_of(pid_t rank, double seconds) {
  int status;
  const struct timespec pause_for = {0, 10000000};
  for (double waited = 0; waited < seconds; waited += 0.01) {
    if (waitpid(rank, &status, WNOHANG) == rank) return status;
    nanosleep(&pause_for, NULL);
  }
  kill(rank, SIGKILL);
  waitpid(rank, &status, 0);
  return -1;
}

static void test_a_rank_ends_with_its_launcher(void) {
  int status = end_of(orphan("prterun", 0), LONG);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

static void test_a_rank_that_ignores_the_signal_ends_too(void) {
  int status = end_of(orphan("hydra_pmi_proxy", 1), LONG);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1);
}

static void test_a_parent_that_is_no_launcher_is_not_watched(void) {
  CHECK(end_of(orphan("bash", 0), 0.3) == -1);
}

static void test_the_user_can_switch_it_off(void) {
  setenv("MPISERVE_END_WITH_LAUNCHER", "0", 1);
  CHECK(end_of(orphan("prterun", 0), 0.3) == -1);
  unsetenv("MPISERVE_END_WITH_LAUNCHER");
}

int main(void) {
  prctl(PR_SET_CHILD_SUBREAPER, 1); /* the parent of those whose parent has ended */
  test_a_rank_ends_with_its_launcher();
  test_a_rank_that_ignores_the_signal_ends_too();
  test_a_parent_that_is_no_launcher_is_not_watched();
  test_the_user_can_switch_it_off();
  return check_result();
}
