/* launcher: ends this process soon after the launcher of its job has ended. A launcher that is
 * killed ends no rank, and MPI_Finalize would wait for it for ever. No MPI calls. */
#ifndef MSI_LAUNCHER_H
#define MSI_LAUNCHER_H

/* Finds the launchers among the ancestors of this process, and watches them from a thread; once in
 * a process. It does nothing where there is none that is known, before Linux 5.3, and if
 * MPISERVE_END_WITH_LAUNCHER is 0. */
void msi_launcher_watch(void);

/* The same of processes that the caller has found, by their descriptors (pidfd_open), which stay
 * open. When one of them ends, a thread removes what MPI keeps in /dev/shm for this process, prints
 * a line, and ends the process: by SIGTERM or, if that is handled, 3 s later by _exit(1). */
void msi_launcher_end_with(const int *files, int count);

#endif
