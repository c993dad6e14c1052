#include "mpi/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/handles.h"
#include "base/profile.h"
#include "mpi/collective.h"
#include "mpi/failure.h"
#include "mpi/pair.h"
#include "mpi/registry.h"

/* What every rank tells every other at open. */
typedef struct hello {
  char version[16];
  int32_t role;
  int32_t thread_level;
  int32_t code;
  int32_t tolerant;
  int32_t metrics;   /* MPISERVE_METRICS of its environment */
  int32_t capture;   /* MPISERVE_CAPTURE of its environment */
  char transport[8]; /* MPISERVE_TRANSPORT of its environment */
  msi_profile_wish profile;
  int64_t now_ns;
  msi_identity who;
} hello;

static int is_same(MPI_Comm a, MPI_Comm b) {
  int how;
  return !MPI_Comm_compare(a, b, &how) && (how == MPI_IDENT || how == MPI_CONGRUENT);
}

/* Local. No rank of a world has closed while one has not, so all that open a second session
 * find the first, and nobody waits for those who refuse. */
int msi_world_check_closed(MPI_Comm comm) {
  if (!msi_handles_any_comm(is_same, comm)) return MPISERVE_OK;
  return msi_error(
      MPISERVE_ESTATE,
      "a session of this world is open: these ranks have one at a time; close it first");
}

/* A folder, for Python, or any other text. */
static int wants(const char *name) {
  const char *text = getenv(name);
  return text && *text && strcmp(text, "off") && strcmp(text, "0");
}

static int exchange_hello(msi_world *world, int code, hello *all) {
  hello mine = {.role = world->role,
                .thread_level = world->thread_level,
                .code = code,
                .tolerant = msi_failure_is_tolerated(),
                .metrics = wants("MPISERVE_METRICS"),
                .capture = wants("MPISERVE_CAPTURE")};
  const char *transport = getenv("MPISERVE_TRANSPORT");
  snprintf(mine.version, sizeof mine.version, "%s", mpiserve_version());
  snprintf(mine.transport, sizeof mine.transport, "%s", transport ? transport : "auto");
  mine.profile = msi_profile_wished();
  mine.now_ns = world->launched_ns;
  mine.who = msi_identity_own();
  return msi_world_gather(world, &mine, all, sizeof mine, "mpiserve_open");
}

static int check_failed(msi_world *world, const hello *all, const char *text) {
  for (int r = 0; r < world->size; r++)
    if (all[r].code) return msi_collective_share_error(world, r, all[r].code, text);
  return MPISERVE_OK;
}

static int check_versions(msi_world *world, const hello *all) {
  for (int r = 0; r < world->size; r++)
    if (strncmp(all[r].version, all[0].version, sizeof all[r].version))
      return msi_error(MPISERVE_EVERSION, "rank %d runs mpiserve %s and rank 0 runs %s", r,
                       all[r].version, all[0].version);
  return MPISERVE_OK;
}

static int check_roles(msi_world *world, const hello *all) {
  world->tolerant = 1;
  for (int r = 0; r < world->size; r++) {
    world->tolerant &= all[r].tolerant;
    world->roles[r] = (uint8_t)all[r].role;
    world->n_simulation += all[r].role == MPISERVE_SIMULATION;
    world->n_clients += msi_world_is_client(world, r);
  }
  if (world->n_simulation && world->n_clients < world->size) return MPISERVE_OK;
  if (world->n_clients > world->n_simulation && world->n_clients < world->size)
    return msi_error(MPISERVE_ECONFIG,
                     "the world has inference ranks and gateways or trainers, but no "
                     "simulation rank: a session needs at least one");
  return msi_error(MPISERVE_ECONFIG,
                   "all %d ranks of the world are %s ranks: a session needs at least one "
                   "simulation rank and one inference rank",
                   world->size, world->n_simulation ? "simulation" : "inference");
}

/* Launchers do not always hand the environment to all: one rank that asks is enough. */
static int check_transport(msi_world *world, const hello *all) {
  for (int r = 0; r < world->size; r++) {
    if (!strcmp(all[r].transport, "rma"))
      world->force_rma = 1;
    else if (!strcmp(all[r].transport, "shared"))
      world->force_shared = 1;
    else if (strcmp(all[r].transport, "auto"))
      return msi_error(MPISERVE_ECONFIG, "rank %d: MPISERVE_TRANSPORT is '%s': auto, shared or rma",
                       r, all[r].transport);
  }
  if (world->force_rma && world->force_shared)
    return msi_error(MPISERVE_ECONFIG, "MPISERVE_TRANSPORT is rma on some ranks, shared on others");
  if (world->force_rma && world->pair)
    return msi_error(MPISERVE_ECONFIG, "MPISERVE_TRANSPORT is rma, which a session of one process "
                                       "does not have: unset it, or start several ranks");
  return MPISERVE_OK;
}

/* One rank that asks is enough, too. Two sessions differ in the process or the time of rank 0. */
static int check_profile(msi_world *world, const hello *all) {
  msi_profile_wish most = {0};
  world->run = all[0].now_ns ^ (int64_t)all[0].who.pid << 40;
  for (int r = 0; r < world->size; r++) {
    world->measured |= all[r].metrics;
    world->captured |= all[r].capture;
    const msi_profile_wish *wish = &all[r].profile;
    if (wish->level < 0 || wish->events < 0)
      return msi_error(MPISERVE_ECONFIG,
                       "rank %d: MPISERVE_PROFILE is to be off, summary or trace, and "
                       "MPISERVE_PROFILE_EVENTS a number from %d to %d",
                       r, MSI_TRACE_LEAST, MSI_TRACE_MOST);
    if (wish->level > most.level) most.level = wish->level;
    if (wish->events > most.events) most.events = wish->events;
  }
  world->profile = most.level > MSI_PROFILE_OFF;
  world->measured |= world->profile;
  if (most.level == MSI_PROFILE_TRACE)
    world->trace_events = most.events ? most.events : MSI_TRACE_EVENTS;
  return MPISERVE_OK;
}

static const char *level_name(int level) {
  return level == MPI_THREAD_SINGLE       ? "MPI_THREAD_SINGLE"
         : level == MPI_THREAD_FUNNELED   ? "MPI_THREAD_FUNNELED"
         : level == MPI_THREAD_SERIALIZED ? "MPI_THREAD_SERIALIZED"
                                          : "MPI_THREAD_MULTIPLE";
}

/* MPICH (5.0.2, and not excluded in others): when some ranks run at
 * MPI_THREAD_MULTIPLE and others do not, collectives deliver wrong data after a
 * few calls and then hang. Open MPI mixes levels well. */
static int check_threads(msi_world *world, const hello *all) {
  if (!strstr(mpiserve_mpi_runtime(), "MPICH")) return MPISERVE_OK;
  int multiple = -1, less = -1;
  for (int r = world->size - 1; r >= 0; r--)
    *(all[r].thread_level == MPI_THREAD_MULTIPLE ? &multiple : &less) = r;
  if (multiple < 0 || less < 0) return MPISERVE_OK;
  return msi_error(MPISERVE_ETHREAD,
                   "rank %d runs at MPI_THREAD_MULTIPLE and rank %d at %s, which corrupts "
                   "messages in MPICH. Either set MPIR_CVAR_DEFAULT_THREAD_LEVEL="
                   "MPI_THREAD_MULTIPLE in the environment of all ranks, or ask for less on "
                   "rank %d (in Python: import mpiserve before mpi4py.MPI)",
                   multiple, less, level_name(all[less].thread_level), multiple);
}

/* A guest sleeps when it waits, so that it takes no core from the others; with more ranks than
 * cores they would wait in another way on its account. */
static msi_backoff backoff_of(const msi_world *world) {
  int ranks = 0;
  for (int r = 0; r < world->size; r++)
    ranks += world->nodes[r] == world->nodes[world->rank] && !msi_world_is_guest(world, r);
  int cores = msi_world_is_guest(world, world->rank) ? 0 : msi_cores();
  return msi_backoff_for(ranks, cores);
}

static int find_nodes(msi_world *world) {
  int first = world->rank;
  if (world->pair) return world->backoff = backoff_of(world), MPISERVE_OK; /* one node: all 0 */
  int failed = MPI_Comm_split_type(world->comm, MPI_COMM_TYPE_SHARED, world->rank, MPI_INFO_NULL,
                                   &world->node);
  if (failed) return msi_mpi_error(failed, "MPI_Comm_split_type");
  MPI_Comm_set_errhandler(world->node, MPI_ERRORS_RETURN);
  failed = MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, world->node);
  if (failed) return msi_mpi_error(failed, "MPI_Allreduce");
  failed = MPI_Allgather(&first, 1, MPI_INT, world->nodes, 1, MPI_INT, world->comm);
  if (failed) return msi_mpi_error(failed, "MPI_Allgather");
  for (int r = 0; r < world->size; r++)
    if (world->force_shared && world->nodes[r] != world->nodes[0])
      return msi_error(MPISERVE_ECONFIG,
                       "MPISERVE_TRANSPORT is shared, but ranks 0 and %d share no memory: they are "
                       "on different nodes, or the launcher keeps them apart",
                       r);
  world->backoff = backoff_of(world);
  return MPISERVE_OK;
}

static int split_roles(msi_world *world) {
  int failed = MPI_Comm_split(world->comm, world->role, world->rank, &world->peers);
  if (failed) return msi_mpi_error(failed, "MPI_Comm_split");
  /* The caller's simulation lives on this one: it keeps MPI's usual behaviour. */
  MPI_Comm_set_errhandler(world->peers, MPI_ERRORS_ARE_FATAL);
  return MPISERVE_OK;
}

/* From now on it is noticed when a rank dies. */
static int watch(msi_world *world, const hello *all) {
  msi_identity *ranks = calloc((size_t)world->size, sizeof *ranks);
  if (!ranks) return msi_error(MPISERVE_ENOMEM, "no memory for %d ranks", world->size);
  for (int r = 0; r < world->size; r++) ranks[r] = all[r].who;
  return msi_failure_open(world, ranks);
}

static int agree(msi_world *world, int code, const char *text) {
  hello *all = calloc((size_t)world->size, sizeof *all);
  if (!all) return msi_error(MPISERVE_ENOMEM, "no memory for %d ranks", world->size);
  int result = exchange_hello(world, code, all);
  if (!result) result = check_failed(world, all, text);
  if (!result) result = check_versions(world, all);
  if (!result) result = check_threads(world, all);
  if (!result) result = check_transport(world, all);
  if (!result) result = check_profile(world, all);
  if (!result) result = check_roles(world, all);
  if (!result) result = watch(world, all);
  free(all);
  return result;
}

static int open_all(msi_world *world, MPI_Comm comm, int code, const char *text) {
  int result = world->roles && world->nodes
                   ? MPISERVE_OK
                   : msi_error(MPISERVE_ENOMEM, "no memory for %d ranks", world->size);
  if (!result) result = msi_collective_duplicate(world, comm);
  if (!result) result = agree(world, code, text);
  if (!result) result = find_nodes(world);
  return result ? result : split_roles(world);
}

int msi_world_open(msi_world *world, MPI_Comm comm, msi_pair *pair, int role, int code,
                   const char *text) {
  const char *wrong = msi_collective_wrong_limit();
  if (!code && wrong) { /* all ranks get it, as any failure of a rank */
    code = MPISERVE_ECONFIG;
    text = wrong;
  }
  *world = (msi_world){.comm = MPI_COMM_NULL,
                       .peers = MPI_COMM_NULL,
                       .node = MPI_COMM_NULL,
                       .meeting = MPI_REQUEST_NULL,
                       .pair = pair,
                       .role = role,
                       .rank = pair ? pair->rank : 0,
                       .size = 2,
                       .launched_ns = msi_now(),
                       .backoff = msi_backoff_for(2, 1)};
  if (!pair) MPI_Comm_rank(comm, &world->rank);
  if (!pair) MPI_Comm_size(comm, &world->size);
  MPI_Query_thread(&world->thread_level);
  world->roles = calloc((size_t)world->size, sizeof *world->roles);
  world->nodes = calloc((size_t)world->size, sizeof *world->nodes);
  int result = open_all(world, comm, code, text);
  world->opened_ns = msi_now();
  if (result) msi_world_close(world);
  return result;
}

/* Ranks may be loading their models: the first of two collectives is the one that waits. */
static int gather_counts(msi_world *world, int n, int *counts) {
  int code = msi_world_gather(world, &n, counts, sizeof n, "mpiserve_publish");
  for (int r = 0; r < world->size; r++) world->n_heads += counts[r];
  return code;
}

static int gather_heads(msi_world *world, const mpiserve_description *mine,
                        mpiserve_description *all, int *counts, int *offsets) {
  const int bytes = (int)sizeof *all;
  for (int r = 0, n = 0; r < world->size; r++) {
    offsets[r] = n * bytes;
    for (int i = 0; i < counts[r]; i++)
      world->heads[n++] = (msi_head){.rank = r, .service_index = i};
    counts[r] *= bytes;
  }
  int code = msi_collective_gather_some(world, mine, all, counts, offsets, "mpiserve_publish");
  for (int i = 0; i < world->n_heads && !code; i++) world->heads[i].description = all[i];
  return code;
}

static int gather(msi_world *world, int n, const mpiserve_description *mine, int *counts) {
  int code = gather_counts(world, n, counts);
  if (code) return code;
  world->heads = calloc((size_t)world->n_heads, sizeof *world->heads);
  mpiserve_description *all = calloc((size_t)world->n_heads, sizeof *all);
  if (world->heads && all)
    code = gather_heads(world, mine, all, counts, counts + world->size);
  else
    code = msi_error(MPISERVE_ENOMEM, "no memory for the registry of %d services", world->n_heads);
  free(all);
  return code;
}

int msi_world_publish(msi_world *world, int n, const mpiserve_description *descriptions) {
  int *counts = calloc(2 * (size_t)world->size, sizeof *counts);
  if (!counts) return msi_error(MPISERVE_ENOMEM, "no memory for %d ranks", world->size);
  int code = gather(world, n, descriptions, counts);
  free(counts);
  return code ? code : msi_registry_check(world);
}

static void free_comm(MPI_Comm *comm) {
  if (*comm != MPI_COMM_NULL) MPI_Comm_free(comm);
}

void msi_world_close(msi_world *world) {
  free_comm(&world->peers);
  free_comm(&world->node);
  free_comm(&world->comm);
  free(world->roles);
  free(world->nodes);
  free(world->heads);
  msi_failure_close(world);
  msi_pair_close(world->pair);
  world->pair = NULL;
  world->roles = NULL;
  world->nodes = NULL;
  world->heads = NULL;
}

int msi_world_index(const msi_world *world, int rank) {
  int index = 0;
  for (int r = 0; r < rank; r++) index += world->roles[r] == world->roles[rank];
  return index;
}
