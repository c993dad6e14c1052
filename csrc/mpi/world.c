#include "mpi/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/handles.h"
#include "base/profile.h"
#include "mpi/failure.h"
#include "mpi/registry.h"

enum { MOST_NAMED = 8 }; /* ranks of a text */

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

int msi_mpi_error(int mpi_code, const char *call) {
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length;
  MPI_Error_string(mpi_code, text, &length);
  return msi_error(MPISERVE_EMPI, "%s: %s", call, text);
}

/* Seconds; normal if there is no text, 0 if it is no positive number. */
static double limit_of(const char *text, double normal) {
  if (!text || !*text) return normal;
  char *end;
  double seconds = strtod(text, &end);
  return *end || !(seconds > 0) ? 0 : seconds;
}

static double open_limit(void) { return limit_of(getenv("MPISERVE_OPEN_TIMEOUT"), 600); }

static double close_limit(void) { return limit_of(getenv("MPISERVE_CLOSE_TIMEOUT"), 30); }

/* The time after which open and publish give up on a rank that does not come. */
static int64_t open_deadline(void) {
  double seconds = open_limit();
  return msi_deadline(seconds > 0 ? seconds : 600);
}

double msi_world_close_limit(void) {
  double seconds = close_limit();
  return seconds > 0 ? seconds : 30;
}

/* Who did not come MPI does not say. After open the inference ranks are known, which publish
 * when they have loaded: the simulation ranks wait for them. */
static int not_all_came(const msi_world *world, const char *what) {
  char ranks[MPISERVE_TEXT_SIZE] = "";
  int named = 0;
  for (int r = 0; world->n_simulation && r < world->size; r++) {
    if (world->roles[r] != MPISERVE_INFERENCE || named == MOST_NAMED) continue;
    size_t n = strlen(ranks);
    snprintf(ranks + n, sizeof ranks - n, named++ ? ", %d" : " %d", r);
  }
  if (named)
    return msi_error(MPISERVE_ETIMEOUT,
                     "rank %d: not every inference rank (%s%s) came to %s in time: is a model "
                     "still loading? (MPISERVE_OPEN_TIMEOUT sets the limit in seconds)",
                     world->rank, ranks + 1, named < MOST_NAMED ? "" : " ...", what);
  return msi_error(MPISERVE_ETIMEOUT,
                   "rank %d: not every rank of the world came to %s in time; does each "
                   "rank take part, by mpiserve_open or with libmpiserve_world.so? "
                   "(MPISERVE_OPEN_TIMEOUT sets the limit in seconds)",
                   world->rank, what);
}

/* A rank that is dead never comes. */
static int has_died(const msi_world *world, const char *what) {
  char text[MPISERVE_TEXT_SIZE] = "";
  msi_failure_name_dead(world, text, sizeof text);
  return msi_error(MPISERVE_EPEER, "rank %d: %s cannot end, because a rank has died: %s",
                   world->rank, what, text);
}

/* Completes a nonblocking collective. Ranks may come minutes apart (models are
 * being loaded), so this sleeps where MPI_Wait would burn a core. */
static int complete(msi_world *world, MPI_Request *request, int64_t deadline, const char *what) {
  msi_wait wait = {0};
  for (;;) {
    int done, failed = MPI_Test(request, &done, MPI_STATUS_IGNORE);
    if (msi_failure_note(world, world->comm, failed)) return has_died(world, what);
    if (failed) return msi_mpi_error(failed, what);
    if (done) return MPISERVE_OK;
    if (!msi_wait_pause(&wait, &world->backoff, NULL)) continue;
    if (world->failure && msi_failure_look(world)) return has_died(world, what);
    if (msi_now() > deadline) return not_all_came(world, what);
  }
}

int msi_world_gather(msi_world *world, const void *mine, void *all, size_t bytes,
                     const char *what) {
  MPI_Request request;
  int failed =
      MPI_Iallgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, world->comm, &request);
  if (failed) return msi_mpi_error(failed, "MPI_Iallgather");
  return complete(world, &request, open_deadline(), what);
}

static int duplicate(msi_world *world, MPI_Comm comm) {
  MPI_Request request;
  int failed = MPI_Comm_idup(comm, &world->comm, &request);
  if (failed) return msi_mpi_error(failed, "MPI_Comm_idup");
  int code = complete(world, &request, open_deadline(), "mpiserve_open");
  if (code) {
    world->comm = MPI_COMM_NULL; /* still in the making: nobody may free it */
    return code;
  }
  MPI_Comm_set_errhandler(world->comm, MPI_ERRORS_RETURN);
  return MPISERVE_OK;
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

/* A rank that failed tells its code and text to all. */
static int share_error(msi_world *world, int rank, int code, const char *text) {
  struct {
    int code;
    char text[MPISERVE_TEXT_SIZE];
  } error = {.code = code};
  if (rank == world->rank) snprintf(error.text, sizeof error.text, "%s", text);
  int failed = MPI_Bcast(&error, sizeof error, MPI_BYTE, rank, world->comm);
  if (failed) return msi_mpi_error(failed, "MPI_Bcast");
  if (rank == world->rank) return msi_error(error.code, "%s", error.text);
  return msi_error(error.code, "rank %d: %s", rank, error.text);
}

static int check_failed(msi_world *world, const hello *all, const char *text) {
  for (int r = 0; r < world->size; r++)
    if (all[r].code) return share_error(world, r, all[r].code, text);
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
    return msi_error(MPISERVE_ECONFIG, "the world has inference ranks and gateways, but no "
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

/* A gateway sleeps when it waits, so that it takes no core from the others; with more ranks than
 * cores they would wait in another way on its account. */
static msi_backoff backoff_of(const msi_world *world) {
  int ranks = 0;
  for (int r = 0; r < world->size; r++)
    ranks += world->nodes[r] == world->nodes[world->rank] && world->roles[r] != MPISERVE_GATEWAY;
  int cores = world->role == MPISERVE_GATEWAY ? 0 : msi_cores();
  return msi_backoff_for(ranks, cores);
}

static int find_nodes(msi_world *world) {
  int first = world->rank;
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

int msi_world_open(msi_world *world, MPI_Comm comm, int role, int code, const char *text) {
  if (!code && !(open_limit() > 0 && close_limit() > 0)) {
    code = MPISERVE_ECONFIG; /* all ranks get it, as any failure of a rank */
    text = open_limit() > 0 ? "MPISERVE_CLOSE_TIMEOUT is to be a number of seconds above 0"
                            : "MPISERVE_OPEN_TIMEOUT is to be a number of seconds above 0";
  }
  *world = (msi_world){.comm = MPI_COMM_NULL,
                       .peers = MPI_COMM_NULL,
                       .node = MPI_COMM_NULL,
                       .meeting = MPI_REQUEST_NULL,
                       .role = role,
                       .launched_ns = msi_now(),
                       .backoff = msi_backoff_for(2, 1)};
  MPI_Comm_rank(comm, &world->rank);
  MPI_Comm_size(comm, &world->size);
  MPI_Query_thread(&world->thread_level);
  world->roles = calloc((size_t)world->size, sizeof *world->roles);
  world->nodes = calloc((size_t)world->size, sizeof *world->nodes);
  int result = world->roles && world->nodes
                   ? MPISERVE_OK
                   : msi_error(MPISERVE_ENOMEM, "no memory for %d ranks", world->size);
  if (!result) result = duplicate(world, comm);
  if (!result) result = agree(world, code, text);
  if (!result) result = find_nodes(world);
  if (!result) result = split_roles(world);
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
  MPI_Request request;
  int failed = MPI_Iallgatherv(mine, counts[world->rank], MPI_BYTE, all, counts, offsets, MPI_BYTE,
                               world->comm, &request);
  if (failed) return msi_mpi_error(failed, "MPI_Iallgatherv");
  int code = complete(world, &request, open_deadline(), "mpiserve_publish");
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

int msi_world_agree(msi_world *world, int code) {
  MPI_Request request;
  int *vote = &world->votes[0], *first = &world->votes[1];
  *vote = code ? world->rank : world->size;
  int failed = MPI_Iallreduce(vote, first, 1, MPI_INT, MPI_MIN, world->comm, &request);
  if (failed) return msi_mpi_error(failed, "MPI_Iallreduce");
  int late = complete(world, &request, open_deadline(), "mpiserve_open");
  if (late || *first == world->size) return late;
  char text[MPISERVE_TEXT_SIZE];
  size_t bytes = msi_text_bytes(mpiserve_last_error(), sizeof text - 1);
  snprintf(text, sizeof text, "%.*s", (int)bytes, mpiserve_last_error());
  return share_error(world, *first, code, text);
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
  world->roles = NULL;
  world->nodes = NULL;
  world->heads = NULL;
}

int msi_world_index(const msi_world *world, int rank) {
  int index = 0;
  for (int r = 0; r < rank; r++) index += world->roles[r] == world->roles[rank];
  return index;
}
