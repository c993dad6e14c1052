#define _GNU_SOURCE
#include "base/launcher.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

enum { MOST_LAUNCHERS = 8, END_SECONDS = 3, STAT_BYTES = 256 };

/* As in mpiserve/mpi/launcher.py: /proc cuts names after 15 characters. */
static const char *const LAUNCHERS[] = {
    "mpirun",        "mpiexec",         "prterun",       "prte",
    "prted",         "orterun",         "orted",         "mpirun.openmpi",
    "mpiexec.hydra", "mpirun.mpich",    "mpiexec.mpich", "hydra_pmi_proxy",
    "slurmstepd",    "hydra_bstrap_pr", "flux-shell",    "palsd",
    "jsmd"};

/* What MPI libraries name their files in /dev/shm: others there may be the user's. */
static const char *const FILES[] = {"sm_segment.", "vader_segment.", "osc_",
                                    "smcoll_",     "xhc_",           "mpich_"};

static struct pollfd watched[MOST_LAUNCHERS];
static int n_watched;
static atomic_flag started = ATOMIC_FLAG_INIT;

/* ---- the end ------------------------------------------------------------------------ */

static int is_of_mpi(const char *name) {
  for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++)
    if (!strncmp(name, FILES[i], strlen(FILES[i]))) return 1;
  return 0;
}

/* MPI would remove them at the end; others that map them go on. The proxies of MPICH (5.0) kill too
 * soon for that when mpiexec ends. */
static void remove_files(void) {
  const char *folder = " /dev/shm/";
  char line[4200], *path;
  FILE *maps = fopen("/proc/self/maps", "re");
  while (maps && fgets(line, sizeof line, maps)) {
    line[strcspn(line, "\n")] = 0;
    path = strstr(line, folder);
    if (path && is_of_mpi(path + strlen(folder))) unlink(path + 1);
  }
  if (maps) fclose(maps);
}

/* In a thread of C: the lock of Python may be held for ever, and a rank may wait in MPI. A handler
 * of the user's for SIGTERM may save something. */
static void *end_with_launcher(void *unused) {
  while (poll(watched, (nfds_t)n_watched, -1) <= 0) {
  }
  remove_files();
  dprintf(2, "mpiserve: the launcher of this job has ended: ending process %d\n", (int)getpid());
  kill(getpid(), SIGTERM);
  sleep(END_SECONDS);
  _exit(1);
  return unused;
}

void msi_launcher_end_with(const int *files, int count) {
  pthread_t thread;
  sigset_t all, before;
  if (count < 1 || atomic_flag_test_and_set(&started)) return;
  for (int i = 0; i < count && i < MOST_LAUNCHERS; i++)
    watched[n_watched++] = (struct pollfd){files[i], POLLIN, 0};
  sigfillset(&all); /* signals are for the other threads */
  pthread_sigmask(SIG_SETMASK, &all, &before);
  if (!pthread_create(&thread, NULL, end_with_launcher, NULL)) pthread_detach(thread);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- ancestors ---------------------------------------------------------------------- */

static int is_launcher(const char *name) {
  for (size_t i = 0; i < sizeof LAUNCHERS / sizeof *LAUNCHERS; i++)
    if (!strcmp(name, LAUNCHERS[i])) return 1;
  return 0;
}

/* /proc/PID/stat is "PID (NAME) STATE PARENT ...", and the name may hold anything. */
static int read_parent(int pid, char name[STAT_BYTES]) {
  char path[32], *end;
  int parent = 0;
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  FILE *stat = fopen(path, "re");
  if (!stat) return 0;
  size_t n = fread(name, 1, STAT_BYTES - 1, stat);
  fclose(stat);
  name[n] = 0;
  char *begin = strchr(name, '(');
  if (!begin || !(end = strrchr(name, ')')) || sscanf(end + 1, " %*c %d", &parent) != 1) return 0;
  *end = 0;
  memmove(name, begin + 1, (size_t)(end - begin));
  return parent;
}

static int open_process(int pid) {
#ifdef SYS_pidfd_open
  return (int)syscall(SYS_pidfd_open, pid, 0);
#else
  return -1 + 0 * pid;
#endif
}

void msi_launcher_watch(void) {
  const char *setting = getenv("MPISERVE_END_WITH_LAUNCHER");
  int files[MOST_LAUNCHERS], count = 0;
  char name[STAT_BYTES];
  if (setting && !strcmp(setting, "0")) return;
  for (int pid = getppid(), parent; pid > 1 && count < MOST_LAUNCHERS; pid = parent) {
    parent = read_parent(pid, name);
    if (!parent || !is_launcher(name)) continue;
    files[count] = open_process(pid);
    count += files[count] >= 0;
  }
  msi_launcher_end_with(files, count);
}
