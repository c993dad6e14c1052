/* preload: opens the session inside MPI_Init, closes it inside MPI_Finalize, and hands it to a
 * program that asks for it. A program that knows nothing of mpiserve cannot handle
 * its errors, so this library prints one line and ends it. */
#define _GNU_SOURCE /* RTLD_NEXT */
#include "preload.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "mpi/family.h"

MPI_Comm msp_world = MPI_COMM_WORLD;
MPI_Fint msp_world_f, msp_real_f = INT_MIN;

static mpiserve_session *session; /* NULL: no session is open, and nothing is replaced */
static int handed_out;

/* libmpiserve's own function; the name itself means the one of this file. */
#define REAL(function) ((__typeof__(function) *)dlsym(RTLD_NEXT, #function))

msp_function *msp_next(msp_function **known, const char *name) {
  msp_function *found = __atomic_load_n(known, __ATOMIC_RELAXED);
  if (found) return found;
  found = (msp_function *)dlsym(RTLD_NEXT, name);
  if (!found) {
    fprintf(stderr, "libmpiserve_world: there is no %s in the libraries that this program loaded\n",
            name);
    PMPI_Abort(MPI_COMM_WORLD, 1);
  }
  __atomic_store_n(known, found, __ATOMIC_RELAXED);
  return found;
}

/* ---- begin and end ---------------------------------------------------------------- */

/* For these reasons all ranks fail, so no rank waits in MPI_Finalize. */
static int fails_everywhere(int code) {
  return code == MPISERVE_ECONFIG || code == MPISERVE_EVERSION || code == MPISERVE_ETHREAD;
}

/* If rank 0 is an inference rank, `serve` has printed the reason; if only some ranks failed, no
 * other rank prints it. */
static void say_why(int code, const char *text) {
  int rank;
  PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank > 0 && fails_everywhere(code)) return;
  fprintf(stderr,
          "libmpiserve_world: MPI_COMM_WORLD cannot be replaced: %s (preload this library into "
          "simulation ranks only)\n",
          text);
}

static void give_up(int code) {
  say_why(code, mpiserve_last_error());
  if (!fails_everywhere(code)) {
    const struct timespec moment = {0, 500000000}; /* MPICH's launcher may lose the line else */
    nanosleep(&moment, NULL);
    PMPI_Abort(MPI_COMM_WORLD, 1);
  }
  PMPI_Finalize();
  exit(1);
}

/* Leaves the session. MPI_Finalize calls this first, after the program's own attributes of
 * MPI_COMM_SELF only: those are newer, and the newest comes first. */
static int end(MPI_Comm self, int key, void *value, void *extra) {
  (void)self, (void)key, (void)value, (void)extra;
  int code = mpiserve_close(session);
  if (code && code != MPISERVE_ESTATE) /* which says that the program has closed it */
    fprintf(stderr, "libmpiserve_world: in MPI_Finalize: %s\n", mpiserve_last_error());
  session = NULL;
  msp_real_f = INT_MIN;
  if (msp_world != MPI_COMM_WORLD) PMPI_Comm_free(&msp_world);
  msp_world = MPI_COMM_WORLD;
  return MPI_SUCCESS;
}

static void end_with_mpi(void) {
  int key;
  PMPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, end, &key, NULL);
  PMPI_Comm_set_attr(MPI_COMM_SELF, key, NULL);
  PMPI_Comm_free_keyval(&key);
}

/* A duplicate, because the program may close the session long before it ends. */
static int replace_world(void) {
  MPI_Comm peers;
  int code = mpiserve_comm(session, &peers);
  if (code) return code;
  PMPI_Comm_dup(peers, &msp_world); /* errors are fatal on it, as on any world */
  PMPI_Comm_set_name(msp_world, "MPI_COMM_WORLD");
  msp_world_f = PMPI_Comm_c2f(msp_world);
  msp_real_f = PMPI_Comm_c2f(MPI_COMM_WORLD);
  return MPISERVE_OK;
}

/* Before all calls with handles, which would not be those of the program's MPI. */
static void check_family(void) {
  const char *build = mpiserve_mpi_build(), *runtime = mpiserve_mpi_runtime();
  if (!msi_family_differs(build, runtime)) return;
  fprintf(
      stderr,
      "libmpiserve_world: this library was built with %s, but the program runs with %s: preload "
      "the one for that MPI (python -m mpiserve config --world, where mpi4py loads it)\n",
      build, runtime);
  exit(1);
}

void msp_begin(void) {
  static int begun; /* Fortran's MPI_Init may call that of C */
  int started = 0;
  MPI_Comm parent = MPI_COMM_NULL;
  PMPI_Initialized(&started);
  if (begun || !started) return;
  begun = 1;
  check_family();
  PMPI_Comm_get_parent(&parent);
  if (parent != MPI_COMM_NULL) return; /* MPI_Comm_spawn started it, in a world of its own */
  int code = REAL(mpiserve_open)(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session);
  if (!code) end_with_mpi(); /* newer than what open sets, so that it comes first */
  if (!code) code = replace_world();
  if (code) give_up(code);
}

/* ---- what a program that knows mpiserve calls -------------------------------------- */

static int is_world(MPI_Comm comm) {
  int how;
  if (comm == MPI_COMM_WORLD) return 1;
  PMPI_Comm_compare(comm, msp_world, &how);
  return how == MPI_IDENT || how == MPI_CONGRUENT;
}

static int hand_out(MPI_Comm world, int role, mpiserve_session **result) {
  if (role != MPISERVE_SIMULATION)
    return mpiserve_error(MPISERVE_EARG,
                          "libmpiserve_world.so is preloaded, so that this is a simulation "
                          "rank");
  if (!is_world(world))
    return mpiserve_error(MPISERVE_EARG,
                          "libmpiserve_world.so is preloaded: the world of a session is "
                          "MPI_COMM_WORLD");
  if (handed_out)
    return mpiserve_error(MPISERVE_ESTATE,
                          "libmpiserve_world.so is preloaded: a program opens one session");
  handed_out = 1;
  *result = session;
  return MPISERVE_OK;
}

MSP_PUBLIC int mpiserve_open(MPI_Comm world, int role, mpiserve_session **result) {
  if (!session || !result || world == MPI_COMM_NULL)
    return REAL(mpiserve_open)(world, role, result);
  *result = NULL;
  return hand_out(world, role, result);
}

/* Before MPI_Init no handle can be converted; libmpiserve checks that. */
MSP_PUBLIC int mpiserve_open_f(MPI_Fint world, int role, mpiserve_session **result) {
  if (!session) return REAL(mpiserve_open_f)(world, role, result);
  return mpiserve_open(PMPI_Comm_f2c(world), role, result);
}

/* The other ranks are open: they see it as they see any failure. */
MSP_PUBLIC int mpiserve_open_failed(MPI_Comm world, int role, int code, const char *text) {
  if (!session || code >= 0) return REAL(mpiserve_open_failed)(world, role, code, text);
  if (!text) text = mpiserve_strerror(code);
  mpiserve_fail(session, text);
  return mpiserve_error(code, text);
}

MSP_PUBLIC int mpiserve_open_failed_f(MPI_Fint world, int role, int code, const char *text) {
  if (!session) return REAL(mpiserve_open_failed_f)(world, role, code, text);
  return mpiserve_open_failed(PMPI_Comm_f2c(world), role, code, text);
}
