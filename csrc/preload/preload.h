/* preload: libmpiserve_world.so, which is preloaded into the simulation ranks of codes
 * that say MPI_COMM_WORLD. This is what the generated wrappers share with preload.c.
 *
 * From MPI_Init on, wrappers replace MPI_COMM_WORLD by a communicator of the
 * simulation ranks. Nobody else's communicators are touched, libmpiserve's neither. */
#ifndef MSP_PRELOAD_H
#define MSP_PRELOAD_H

#include "mpiserve.h"

#ifdef MPISERVE_MPI_ABI /* see csrc/mpi/library.c */
#define PMPI_Comm_f2c PMPI_Comm_fromint
#define PMPI_Comm_c2f PMPI_Comm_toint
#endif

#define MSP_PUBLIC __attribute__((visibility("default")))

typedef void msp_function(void);

/* What MPI_COMM_WORLD means to the program, in C and as Fortran handles. Until a
 * session is open it means what it is, and msp_real_f is no handle. */
extern MPI_Comm msp_world;
extern MPI_Fint msp_world_f, msp_real_f;

static inline MPI_Comm msp_comm(MPI_Comm comm) { return comm == MPI_COMM_WORLD ? msp_world : comm; }

/* Fortran passes the address of a handle, of an INTEGER or a type(MPI_Comm) alike. */
static inline void *msp_comm_f(void *comm) {
  return *(MPI_Fint *)comm == msp_real_f ? &msp_world_f : comm;
}

/* Opens the session, if MPI has started and this was not done. Ends the program if it cannot. */
void msp_begin(void);

/* The Fortran library's function of a name, remembered in *known. It is looked for when it is
 * called, because C programs do not load these libraries. */
msp_function *msp_next(msp_function **known, const char *name);

#endif
