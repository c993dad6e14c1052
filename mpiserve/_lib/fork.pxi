"""What a forked child of a rank must not do: use its session, or end its MPI. And a rank's end."""

from libc.stdlib cimport exit as exit_of_c

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <pthread.h>
    #include <stdint.h>
    #include <unistd.h>
    #ifdef __linux__
    #include <link.h>
    #include <string.h>
    #include <sys/mman.h>
    #endif

    /* Not os.register_at_fork: a library may fork too. */
    static unsigned forks;
    static void count_fork(void) { forks++; }
    static int watch_forks(void) { return pthread_atfork(NULL, NULL, count_fork); }

    #ifdef __linux__
    /* mpi4py calls MPI_Finalize after all Python code, at an exit that a child cannot leave
     * out without losing its status. So the child turns the call into none, where modules
     * find the function: in the table of the dynamic linker, one for each of them. */
    static int no_finalize(void) { return 0; }

    static void replace_call(uintptr_t place) {
      long page = sysconf(_SC_PAGESIZE);
      void *start = (void *)(place & ~(uintptr_t)(page - 1));
      if (!mprotect(start, (size_t)page, PROT_READ | PROT_WRITE))
        *(uintptr_t *)place = (uintptr_t)no_finalize;
    }

    static uintptr_t entry(const ElfW(Dyn) *dynamic, ElfW(Sxword) tag, uintptr_t base) {
      for (; dynamic->d_tag != DT_NULL; dynamic++)
        if (dynamic->d_tag == tag) {
          int is_size = tag == DT_PLTRELSZ || tag == DT_RELASZ;
          uintptr_t value = dynamic->d_un.d_ptr;
          return is_size || value >= base ? value : base + value;
        }
      return 0;
    }

    static void leave_out_of(const ElfW(Dyn) *dynamic, uintptr_t base, ElfW(Sxword) table,
                             ElfW(Sxword) bytes) {
      const ElfW(Rela) *calls = (const ElfW(Rela) *)entry(dynamic, table, base);
      const ElfW(Sym) *symbols = (const ElfW(Sym) *)entry(dynamic, DT_SYMTAB, base);
      const char *names = (const char *)entry(dynamic, DT_STRTAB, base);
      if (!calls || !symbols || !names) return;
      for (size_t n = entry(dynamic, bytes, base) / sizeof *calls; n; n--, calls++) {
        size_t symbol = calls->r_info >> 32;
        if (symbol && !strcmp(names + symbols[symbol].st_name, "MPI_Finalize"))
          replace_call(base + calls->r_offset);
      }
    }

    static int leave_out(struct dl_phdr_info *info, size_t size, void *unused) {
      const ElfW(Dyn) *dynamic = NULL;
      uintptr_t base = info->dlpi_addr;
      for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
          dynamic = (const ElfW(Dyn) *)(base + info->dlpi_phdr[i].p_vaddr);
      if (!dynamic || !base) return 0;
      leave_out_of(dynamic, base, DT_JMPREL, DT_PLTRELSZ);
      leave_out_of(dynamic, base, DT_RELA, DT_RELASZ); /* of a module compiled with -fno-plt */
      return (void)size, (void)unused, 0;
    }

    static void leave_out_finalize(void) { dl_iterate_phdr(leave_out, NULL); }
    #else
    static void leave_out_finalize(void) {}
    #endif

    enum { EXIT_SECONDS = 5 };
    static void *exit_late(void *status) {
      for (unsigned left = EXIT_SECONDS; left;) left = sleep(left);
      _exit((int)(intptr_t)status);
    }
    static void limit_exit(int status) {
      pthread_t thread;
      if (!pthread_create(&thread, NULL, exit_late, (void *)(intptr_t)status))
        pthread_detach(thread);
    }
    """
    unsigned forks
    int watch_forks()
    void leave_out_finalize()
    void limit_exit(int status)

if watch_forks():
    raise MemoryError


def is_forked():
    """Tell whether this process was forked from one that had started MPI."""
    return forks != 0


def keep_mpi():
    """Let the end of a forked child leave the MPI of its parent alone.

    MPI_Finalize of a child hangs (Open MPI 5) or breaks that of the parent (MPICH 5).
    """
    if forks:
        leave_out_finalize()


cdef int refuse_fork() except -1:
    raise errors.from_code(
        errors.Code.ESTATE,
        "this process was forked from the one that opened the session, which alone may use it",
    )


def end_process(int status):
    """End this process by exit() of C, at most 5 s later.

    Exit handlers of libraries and destructors of static C++ objects run, and Python's do not. The
    lock of Python is kept, so that none of its threads goes on meanwhile.
    """
    limit_exit(status)  # a handler may wait for a thread that is stuck
    exit_of_c(status)
