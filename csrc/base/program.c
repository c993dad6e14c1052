#define _GNU_SOURCE
#include "base/program.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/peer.h"

extern char **environ;

/* Above all numbers that files get in the program, or one would be put in the place of another. */
enum { HIGH = MSI_PROGRAM_FIRST_FILE + MSI_PROGRAM_MOST_FILES + 1, NS_PER_MS = 1000000 };

static int failed(int code, const char *what, const char *path, int error) {
  return msi_error(code, "%s %s: %s", what, path, strerror(error));
}

static void close_all(const int *files, int n) {
  for (int i = 0; i < n; i++) close(files[i]);
}

/* Copies of the files with high numbers; returns how many there are. */
static int copy_high(const int *files, int n, int *copies) {
  for (int i = 0; i < n; i++)
    if ((copies[i] = fcntl(files[i], F_DUPFD_CLOEXEC, HIGH)) < 0) return i;
  return n;
}

/* posix_spawn() copies no memory and runs none of this program's code in the new process, which MPI
 * libraries do not like. A rank may have blocked or ignored signals. Launchers send SIGUSR1 and
 * SIGUSR2 to all processes of a rank: the program ignores them once it can. */
static int spawn(int *pid, char *const *argv, const int *copies, int n) {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t how;
  sigset_t blocked, all;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  sigaddset(&blocked, SIGUSR2);
  sigfillset(&all);
  posix_spawn_file_actions_init(&files);
  posix_spawnattr_init(&how);
  posix_spawnattr_setsigmask(&how, &blocked);
  posix_spawnattr_setsigdefault(&how, &all);
  posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  for (int i = 0; i < n; i++)
    posix_spawn_file_actions_adddup2(&files, copies[i], MSI_PROGRAM_FIRST_FILE + i);
  int error = posix_spawn(pid, argv[0], &files, &how, argv, environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&how);
  return error;
}

/* With the read end of the lifeline as the last file. */
static int spawn_with(msi_program *program, int code, char *const *argv, const int *files, int n) {
  int copies[MSI_PROGRAM_MOST_FILES + 1];
  int made = copy_high(files, n, copies), error = errno;
  if (made == n) error = spawn(&program->pid, argv, copies, n);
  close_all(copies, made);
  return error ? failed(code, "cannot start", argv[0], error) : MPISERVE_OK;
}

int msi_program_start(msi_program *program, int code, char *const *argv, const int *files,
                      int n_files) {
  int ends[2], all[MSI_PROGRAM_MOST_FILES + 1];
  *program = (msi_program){0};
  if (pipe2(ends, O_CLOEXEC)) return failed(code, "no pipe for", argv[0], errno);
  memcpy(all, files, (size_t)n_files * sizeof *files);
  all[n_files] = ends[0];
  int result = spawn_with(program, code, argv, all, n_files + 1);
  close(ends[0]);
  program->lifeline = ends[1];
  if (result) {
    close(ends[1]);
    *program = (msi_program){0};
    return result;
  }
  program->pidfd = msi_peer_open(program->pid);
  if (program->pidfd >= 0) return MPISERVE_OK;
  int error = errno;
  msi_program_end(program, 0);
  return failed(code, "no pidfd (Linux 5.3) of", argv[0], error);
}

/* Has it ended within that time? A signal may end the wait early. */
static int has_ended(const msi_program *program, int64_t ns) {
  struct pollfd end = {program->pidfd, POLLIN, 0};
  return program->pidfd >= 0 && poll(&end, 1, (int)(ns / NS_PER_MS)) > 0;
}

/* A handler of the user's for SIGCHLD may have waited for it: then its number may be another
 * one's. */
void msi_program_end(msi_program *program, int64_t ns) {
  if (!program->pid) return;
  close(program->lifeline);
  if (!has_ended(program, ns)) kill(program->pid, SIGKILL);
  while (waitpid(program->pid, NULL, 0) < 0 && errno == EINTR) {
  }
  if (program->pidfd >= 0) close(program->pidfd);
  *program = (msi_program){0};
}
