#define _GNU_SOURCE
#include "base/peer.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static int has_ended(int watch) {
  struct pollfd poll_for = {watch, POLLIN, 0};
  return poll(&poll_for, 1, 0) == 1;
}

/* A child that waits for a signal, and what it says of itself; or that waits in the kernel for its
 * own child, of its group, to start a program, which that never does. */
static pid_t child(msi_identity *who, int is_stuck) {
  int pipe_of[2];
  if (pipe(pipe_of)) return -1;
  pid_t pid = fork();
  if (!pid) {
    msi_identity own = msi_identity_own();
    setpgid(0, 0);
    if (write(pipe_of[1], &own, sizeof own) == sizeof own)
      for (is_stuck = is_stuck && vfork();;) pause();
    _exit(1);
  }
  CHECK(read(pipe_of[0], who, sizeof *who) == sizeof *who);
  close(pipe_of[0]);
  close(pipe_of[1]);
  return pid;
}

static void test_a_process_knows_itself(void) {
  msi_identity own = msi_identity_own();
  CHECK(own.pid == getpid() && own.start && own.pid_space && own.host[0]);
  CHECK(msi_identity_is_near(&own, &own) && msi_peer_state_of(&own) == MSI_PEER_ALIVE);
}

static void test_a_process_is_alive_then_stopped_then_dead(void) {
  msi_identity own = msi_identity_own(), other;
  pid_t pid = child(&other, 0);
  CHECK(other.pid == pid && msi_identity_is_near(&own, &other));
  int watch = msi_peer_watch(&other);
  CHECK(watch >= 0 && !has_ended(watch) && msi_peer_state_of(&other) == MSI_PEER_ALIVE);
  kill(pid, SIGSTOP);
  waitpid(pid, NULL, WUNTRACED);
  CHECK(!has_ended(watch) && msi_peer_state_of(&other) == MSI_PEER_STOPPED);
  kill(pid, SIGKILL);
  siginfo_t info;
  waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT); /* now it is a zombie */
  CHECK(has_ended(watch) && msi_peer_state_of(&other) == MSI_PEER_DEAD);
  waitpid(pid, NULL, 0);
  CHECK(has_ended(watch) && msi_peer_state_of(&other) == MSI_PEER_DEAD);
  CHECK(msi_peer_watch(&other) < 0);
  close(watch);
}

static void test_a_process_is_stuck_in_the_kernel(void) {
  msi_identity other;
  pid_t pid = child(&other, 1);
  for (int i = 0; i < 3000 && msi_peer_state_of(&other) != MSI_PEER_STUCK; i++) usleep(10000);
  CHECK(msi_peer_state_of(&other) == MSI_PEER_STUCK);
  kill(-pid, SIGKILL);
  waitpid(pid, NULL, 0);
  CHECK(msi_peer_state_of(&other) == MSI_PEER_DEAD);
}

static void test_a_number_that_is_used_again_is_another_process(void) {
  msi_identity before = msi_identity_own();
  before.start--;
  CHECK(msi_peer_state_of(&before) == MSI_PEER_DEAD && msi_peer_watch(&before) < 0);
}

static void test_who_is_elsewhere_cannot_be_looked_at(void) {
  msi_identity own = msi_identity_own(), other = own;
  other.pid_space++;
  CHECK(!msi_identity_is_near(&own, &other));
  other = own;
  other.host[0]++;
  CHECK(!msi_identity_is_near(&own, &other));
  other = own;
  other.start = 0;
  CHECK(!msi_identity_is_near(&own, &other));
}

int main(void) {
  test_a_process_knows_itself();
  test_a_process_is_alive_then_stopped_then_dead();
  test_a_process_is_stuck_in_the_kernel();
  test_a_number_that_is_used_again_is_another_process();
  test_who_is_elsewhere_cannot_be_looked_at();
  return check_result();
}
