/* family: MPIs with one binary interface: Open MPI, or MPICH and those like it, or any by that of
 * MPI 5. Between families the handles differ in size and the constants in value, so that of a
 * library and a program of two families no call with a handle works. */
#ifndef MSI_FAMILY_H
#define MSI_FAMILY_H

#include <string.h>

/* The family of an MPI, from how it describes itself; "" if it is none of them. */
static inline const char *msi_family(const char *mpi) {
  if (strstr(mpi, "MPI ABI")) return "MPI ABI";
  if (strstr(mpi, "Open MPI")) return "Open MPI";
  const int alike = strstr(mpi, "MPICH") || strstr(mpi, "MVAPICH") || strstr(mpi, "Intel(R) MPI");
  return alike ? "MPICH" : "";
}

static inline int msi_family_differs(const char *build, const char *runtime) {
  const char *one = msi_family(build), *other = msi_family(runtime);
  return *one && *other && strcmp(one, other);
}

#endif
