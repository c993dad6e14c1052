/* What wrappers.py reads, after the preprocessor: all that the MPI library declares. */
#define OMPI_OMIT_MPI1_COMPAT_DECLS 0 /* Open MPI: removed functions that it may still have */
#include <mpi.h>
#if __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif
