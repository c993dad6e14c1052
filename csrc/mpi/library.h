/* library: versions of this library and of its MPI, the state of MPI, communicators of Fortran.
 * mpiserve_version(), mpiserve_mpi_build() and mpiserve_mpi_runtime() are defined here. */
#ifndef MSI_LIBRARY_H
#define MSI_LIBRARY_H

#include "mpiserve.h"

/* MPISERVE_ESTATE before MPI_Init and after MPI_Finalize; MPISERVE_EVERSION if the program runs
 * with an MPI of another family. */
int msi_library_check_running(void);
int msi_library_finalized(void);

/* Calls a function in MPI_Finalize, before MPI has ended anything; once set, for good. */
void msi_library_at_finalize(void (*function)(void));

/* Only while MPI runs: before MPI_Init, MPI_Comm_f2c() of Open MPI 4.1.4 aborts. */
MPI_Comm msi_library_comm(MPI_Fint comm);
MPI_Fint msi_library_comm_f(MPI_Comm comm);

#endif
