"""The end of a rank whose launcher has died, of mpiserve._lib.core."""

cdef extern from *:
    """
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <string.h>
    #include <unistd.h>
    #ifdef __linux__
    #include <sys/prctl.h>
    #endif

    enum { MOST_LAUNCHERS = 8, END_SECONDS = 3 };

    static struct pollfd launchers[MOST_LAUNCHERS];
    static int n_launchers;

    /* What MPI keeps in /dev/shm for this rank, and would remove at the end; others that map it go
     * on. The proxies of MPICH (5.0) kill too soon for that when mpiexec ends. */
    static void remove_files(void) {
      char line[4200], *path;
      FILE *maps = fopen("/proc/self/maps", "re");
      while (maps && fgets(line, sizeof line, maps))
        if ((path = strstr(line, " /dev/shm/"))) {
          path[strcspn(path, "\\n")] = 0;
          unlink(path + 1);
        }
    }

    /* Not in Python, whose lock a model may hold for ever. A handler of the user's for SIGTERM
     * may save something. */
    static void *end_with_launcher(void *unused) {
      while (poll(launchers, n_launchers, -1) <= 0) {
      }
      remove_files();
      dprintf(2, "mpiserve: the launcher of this job has ended: ending process %d\\n", getpid());
      kill(getpid(), SIGTERM);
      sleep(END_SECONDS);
      _exit(1);
      return unused;
    }

    static int watch_launchers(void) {
      pthread_t thread;
      sigset_t all, before;
      sigfillset(&all); /* signals are for the other threads */
      pthread_sigmask(SIG_SETMASK, &all, &before);
      int failed = pthread_create(&thread, NULL, end_with_launcher, NULL);
      pthread_sigmask(SIG_SETMASK, &before, NULL);
      if (!failed) pthread_detach(thread);
      return failed;
    }

    static void watch_launcher(int file) {
      if (n_launchers < MOST_LAUNCHERS) launchers[n_launchers++] = (struct pollfd){file, POLLIN, 0};
    }

    static void die_with_parent(void) {
    #ifdef __linux__
      prctl(PR_SET_PDEATHSIG, SIGKILL);
    #endif
    }
    """
    void watch_launcher(int)
    int watch_launchers() nogil
    void die_with_parent()


def end_with(files):
    """End this process soon after one of some other processes has ended.

    SIGTERM ends it, or, if it is handled, the time of 3 s after that. Whatever the process has
    mapped of /dev/shm is removed.

    Args:
        files: Their descriptors (os.pidfd_open), which stay open.
    """
    for file in files:
        watch_launcher(file)
    with nogil:
        watch_launchers()


def end_with_parent():
    """End this process by SIGKILL when its parent ends: for kernels without os.pidfd_open."""
    die_with_parent()
