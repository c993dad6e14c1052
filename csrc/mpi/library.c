#include "mpi/library.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "mpi/family.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const char *mpiserve_version(void) {
  return TEXT(MPISERVE_VERSION_MAJOR) "." TEXT(MPISERVE_VERSION_MINOR) "." TEXT(
      MPISERVE_VERSION_PATCH);
}

const char *mpiserve_mpi_build(void) {
#if defined(MPICH_VERSION)
  return "MPICH " MPICH_VERSION;
#elif defined(OMPI_MAJOR_VERSION)
  return "Open MPI " TEXT(OMPI_MAJOR_VERSION) "." TEXT(OMPI_MINOR_VERSION) "." TEXT(
      OMPI_RELEASE_VERSION);
#elif defined(MPISERVE_MPI_ABI)
  return "MPI ABI " TEXT(MPI_ABI_VERSION) "." TEXT(MPI_ABI_SUBVERSION);
#else
  return "MPI " TEXT(MPI_VERSION) "." TEXT(MPI_SUBVERSION);
#endif
}

/* Weak: MPI 5 has it. Its binary interface has a version; that of the vendor has none. */
#pragma weak MPI_Abi_get_version
int MPI_Abi_get_version(int *major, int *minor);

static int has_abi(void) {
  int major = 0, minor;
  return MPI_Abi_get_version && !MPI_Abi_get_version(&major, &minor) && major > 0;
}

/* The longest MPI_MAX_LIBRARY_VERSION_STRING: another MPI may run than the one built for. */
enum { LONGEST = 8192 };

const char *mpiserve_mpi_runtime(void) {
  static char name[64];
  char text[LONGEST] = "", version[32];
  const char *abi = has_abi() ? " (MPI ABI)" : "";
  int length;
  if (name[0]) return name;
  MPI_Get_library_version(text, &length);
  const char *mpich = strstr(text, "MPICH Version:"), *open = strstr(text, "Open MPI v");
  if (mpich && sscanf(mpich, "MPICH Version: %31s", version) == 1)
    snprintf(name, sizeof name, "MPICH %s%s", version, abi);
  else if (open && sscanf(open, "Open MPI v%31[0-9.]", version) == 1)
    snprintf(name, sizeof name, "Open MPI %s%s", version, abi);
  else
    snprintf(name, sizeof name, "%.50s%s", text, abi);
  return name;
}

static int check_family(void) {
  const char *build = mpiserve_mpi_build(), *runtime = mpiserve_mpi_runtime();
  if (!msi_family_differs(build, runtime)) return MPISERVE_OK;
  return msi_error(MPISERVE_EVERSION,
                   "libmpiserve was built with %s, but this program runs with %s: build both with "
                   "one MPI (python -m mpiserve config names the library for the MPI of mpi4py)",
                   build, runtime);
}

int msi_library_check_running(void) {
  int started = 0, ended = 0, code = check_family();
  if (code) return code;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  if (started && !ended) return MPISERVE_OK;
  return msi_error(MPISERVE_ESTATE, "MPI is not running: open comes after MPI_Init and close "
                                    "before MPI_Finalize");
}

int msi_library_finalized(void) {
  int ended = 0;
  MPI_Finalized(&ended);
  return ended;
}

static void (*at_finalize)(void);

static int finalize(MPI_Comm self, int key, void *value, void *extra) {
  (void)self, (void)key, (void)value, (void)extra;
  at_finalize();
  return MPI_SUCCESS;
}

/* The attributes of MPI_COMM_SELF are deleted first of all, the newest first. */
void msi_library_at_finalize(void (*function)(void)) {
  int key;
  if (at_finalize) return;
  at_finalize = function;
  MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, finalize, &key, NULL);
  MPI_Comm_set_attr(MPI_COMM_SELF, key, NULL);
  MPI_Comm_free_keyval(&key);
}

#ifdef MPISERVE_MPI_ABI /* the same numbers, by other names */
#define MPI_Comm_f2c MPI_Comm_fromint
#define MPI_Comm_c2f MPI_Comm_toint
#endif

MPI_Comm msi_library_comm(MPI_Fint comm) { return MPI_Comm_f2c(comm); }

MPI_Fint msi_library_comm_f(MPI_Comm comm) { return MPI_Comm_c2f(comm); }
