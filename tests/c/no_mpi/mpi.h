/* Stands in for mpi.h where files that call no MPI are tested without one: a
 * call that slips into them fails to link. */
#ifndef NO_MPI_H
#define NO_MPI_H

typedef int MPI_Comm;
typedef int MPI_Fint;
typedef int MPI_Request;
typedef int MPI_Win;

#endif
