"""The end of a rank whose launcher has died, of mpiserve._lib.core."""

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/prctl.h>
    #endif
    #include <signal.h>

    static void die_with_parent(void) {
    #ifdef __linux__
      prctl(PR_SET_PDEATHSIG, SIGKILL);
    #endif
    }
    """
    void die_with_parent()

cdef extern from "base/launcher.h":
    void msi_launcher_end_with(const int *, int)


def end_with(files):
    """End this process soon after one of some other processes has ended.

    SIGTERM ends it, or, if it is handled, the time of 3 s after that. What MPI has mapped of
    /dev/shm is removed.

    Args:
        files: Their descriptors (os.pidfd_open), which stay open.
    """
    cdef int array[8]
    cdef int count = 0
    for file in files[:8]:
        array[count] = file
        count += 1
    msi_launcher_end_with(array, count)


def end_with_parent():
    """End this process by SIGKILL when its parent ends: for kernels without os.pidfd_open."""
    die_with_parent()
