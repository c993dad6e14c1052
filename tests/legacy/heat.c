/* A code that says MPI_COMM_WORLD everywhere and knows nothing of mpiserve: heat in a plate, with
 * collectives, a Cartesian communicator, splits, windows, attributes, groups, intercommunicators.
 * Rank 0 prints the answer. With -DASKS it asks a service, with -DABORTS a rank gives up. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef ASKS
#include <mpiserve.h>
#endif

enum { CELLS = 16, STEPS = 50 };

static double cell[CELLS + 2][CELLS + 2], next[CELLS + 2][CELLS + 2];
static MPI_Comm plate;

static int rank_of(MPI_Comm comm) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  return rank;
}

static int size_of(MPI_Comm comm) {
  int size;
  MPI_Comm_size(comm, &size);
  return size;
}

static void make_plate(void) {
  int dims[2] = {0, 0}, periods[2] = {1, 0};
  MPI_Dims_create(size_of(MPI_COMM_WORLD), 2, dims);
  MPI_Cart_create(MPI_COMM_WORLD, 2, dims, periods, 0, &plate);
}

static void exchange(MPI_Datatype column) {
  int low, high;
  MPI_Cart_shift(plate, 0, 1, &low, &high);
  MPI_Sendrecv(cell[CELLS], CELLS + 2, MPI_DOUBLE, high, 1, cell[0], CELLS + 2, MPI_DOUBLE, low, 1,
               plate, MPI_STATUS_IGNORE);
  MPI_Sendrecv(cell[1], CELLS + 2, MPI_DOUBLE, low, 2, cell[CELLS + 1], CELLS + 2, MPI_DOUBLE, high,
               2, plate, MPI_STATUS_IGNORE);
  MPI_Cart_shift(plate, 1, 1, &low, &high);
  MPI_Sendrecv(&cell[0][CELLS], 1, column, high, 3, &cell[0][0], 1, column, low, 3, plate,
               MPI_STATUS_IGNORE);
  MPI_Sendrecv(&cell[0][1], 1, column, low, 4, &cell[0][CELLS + 1], 1, column, high, 4, plate,
               MPI_STATUS_IGNORE);
}

static void heat(void) {
  MPI_Datatype column;
  MPI_Type_vector(CELLS + 2, 1, CELLS + 2, MPI_DOUBLE, &column);
  MPI_Type_commit(&column);
  for (int i = 1; i <= CELLS; i++)
    for (int j = 1; j <= CELLS; j++) cell[i][j] = i * j % 7 + rank_of(MPI_COMM_WORLD);
  for (int step = 0; step < STEPS; step++) {
    exchange(column);
    for (int i = 1; i <= CELLS; i++)
      for (int j = 1; j <= CELLS; j++)
        next[i][j] = 0.25 * (cell[i - 1][j] + cell[i + 1][j] + cell[i][j - 1] + cell[i][j + 1]);
    memcpy(cell, next, sizeof cell);
  }
  MPI_Type_free(&column);
}

static void say(const char *what, double mine) {
  double sum, most;
  MPI_Reduce(&mine, &sum, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  MPI_Allreduce(&mine, &most, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  if (rank_of(MPI_COMM_WORLD) == 0) printf("%s: %.12g %.12g\n", what, sum, most);
}

static double heat_here(void) {
  double sum = 0;
  for (int i = 1; i <= CELLS; i++)
    for (int j = 1; j <= CELLS; j++) sum += cell[i][j];
  return sum;
}

static void splits(void) {
  MPI_Comm half, node, same;
  int how, rank = rank_of(MPI_COMM_WORLD);
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &half);
  say("rank in my half", rank_of(half) * 10 + size_of(half));
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  say("ranks of my node", size_of(node));
  MPI_Comm_dup(MPI_COMM_WORLD, &same);
  MPI_Comm_compare(same, MPI_COMM_WORLD, &how);
  say("a duplicate is congruent", how == MPI_CONGRUENT);
  MPI_Comm_compare(MPI_COMM_WORLD, MPI_COMM_WORLD, &how);
  say("the world is itself", how == MPI_IDENT);
  MPI_Comm_free(&half);
  MPI_Comm_free(&node);
  MPI_Comm_free(&same);
}

static void groups(void) {
  MPI_Group all, first;
  MPI_Comm one, halves, between;
  int zero = 0, rank = rank_of(MPI_COMM_WORLD), size = size_of(MPI_COMM_WORLD), others = 0;
  MPI_Comm_group(MPI_COMM_WORLD, &all);
  MPI_Group_size(all, &others);
  say("ranks of the group", others);
  MPI_Group_incl(all, 1, &zero, &first);
  MPI_Comm_create(MPI_COMM_WORLD, first, &one);
  say("only the first is in", one != MPI_COMM_NULL);
  MPI_Comm_split(MPI_COMM_WORLD, rank > 0, rank, &halves);
  if (size > 1) {
    MPI_Intercomm_create(halves, 0, MPI_COMM_WORLD, rank > 0 ? 0 : 1, 5, &between);
    MPI_Comm_remote_size(between, &others);
    MPI_Comm_free(&between);
  }
  say("ranks on the other side", others);
  if (one != MPI_COMM_NULL) MPI_Comm_free(&one);
  MPI_Comm_free(&halves);
  MPI_Group_free(&first);
  MPI_Group_free(&all);
}

static void windows(void) {
  int rank = rank_of(MPI_COMM_WORLD), size = size_of(MPI_COMM_WORLD), *base, value = 100 + rank;
  int memory = -1;
  MPI_Win allocated, created, shared;
  MPI_Win_allocate(sizeof(int), sizeof(int), MPI_INFO_NULL, MPI_COMM_WORLD, &base, &allocated);
  MPI_Win_fence(0, allocated);
  MPI_Put(&value, 1, MPI_INT, (rank + 1) % size, 0, 1, MPI_INT, allocated);
  MPI_Win_fence(0, allocated);
  say("put by my neighbour", *base);
  MPI_Win_create(&memory, sizeof memory, sizeof memory, MPI_INFO_NULL, MPI_COMM_WORLD, &created);
  MPI_Win_fence(0, created);
  MPI_Put(&value, 1, MPI_INT, (rank + size - 1) % size, 0, 1, MPI_INT, created);
  MPI_Win_fence(0, created);
  say("put by the other neighbour", memory);
  MPI_Win_allocate_shared(sizeof(int), sizeof(int), MPI_INFO_NULL, MPI_COMM_WORLD, &base, &shared);
  MPI_Win_fence(0, shared);
  *base = rank + 1;
  MPI_Win_fence(0, shared);
  MPI_Aint bytes;
  int unit;
  MPI_Win_shared_query(shared, (rank + 1) % size, &bytes, &unit, &base);
  say("seen in shared memory", *base);
  MPI_Win_fence(0, shared);
  MPI_Win_free(&shared);
  MPI_Win_free(&created);
  MPI_Win_free(&allocated);
}

static void attributes(void) {
  int *bound, found, mine = 7, key, *back, length;
  char name[MPI_MAX_OBJECT_NAME];
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &bound, &found);
  say("the bound of tags is there", found && *bound >= 32767);
  MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, MPI_COMM_NULL_DELETE_FN, &key, NULL);
  MPI_Comm_get_attr(MPI_COMM_WORLD, key, &back, &found);
  say("my attribute is not there", found);
  MPI_Comm_set_attr(MPI_COMM_WORLD, key, &mine);
  MPI_Comm_get_attr(MPI_COMM_WORLD, key, &back, &found);
  say("my attribute is there", found && *back == 7);
  MPI_Comm_delete_attr(MPI_COMM_WORLD, key);
  MPI_Comm_free_keyval(&key);
  MPI_Comm_get_name(MPI_COMM_WORLD, name, &length);
  say("it has its name", !strcmp(name, "MPI_COMM_WORLD"));
}

static void errors(void) {
  MPI_Errhandler usual;
  int one = 1;
  MPI_Comm_get_errhandler(MPI_COMM_WORLD, &usual);
  say("errors are fatal", usual == MPI_ERRORS_ARE_FATAL);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  say("no such rank", MPI_Send(&one, 1, MPI_INT, size_of(MPI_COMM_WORLD), 0, MPI_COMM_WORLD) != 0);
  say("no such datatype", MPI_Type_contiguous(-1, MPI_INT, &(MPI_Datatype){0}) != 0);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_ARE_FATAL);
}

static void files(void) {
  MPI_File file;
  MPI_Offset bytes;
  char mine = 'a';
  MPI_File_open(MPI_COMM_WORLD, "heat.out", MPI_MODE_CREATE | MPI_MODE_RDWR, MPI_INFO_NULL, &file);
  MPI_File_write_at_all(file, rank_of(MPI_COMM_WORLD), &mine, 1, MPI_CHAR, MPI_STATUS_IGNORE);
  MPI_File_sync(file);
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_File_get_size(file, &bytes);
  MPI_File_close(&file);
  say("bytes in the file", (double)bytes);
}

/* A callback of MPI_Finalize may still use the world. */
static int at_end(MPI_Comm self, int key, void *value, void *extra) {
  (void)self, (void)key, (void)value, (void)extra;
  say("ranks at the end", size_of(MPI_COMM_WORLD));
  return MPI_SUCCESS;
}

#ifdef ASKS
static int told(const char *call, int code) {
  if (code && rank_of(MPI_COMM_WORLD) == 0)
    printf("%s: %d %s\n", call, code, mpiserve_last_error());
  return code;
}

static void ask(void) {
  mpiserve_session *session, *second;
  mpiserve_service *service;
  float x[2][3] = {{1, 2, 3}, {4, 5, 6}}, y[2][3] = {{0}};
  mpiserve_tensor in = {"x", x, MPISERVE_FLOAT32, 2, {2, 3}};
  mpiserve_tensor out = {"y", y, MPISERVE_FLOAT32, 2, {2, 3}};
  told("inference", mpiserve_open(MPI_COMM_WORLD, MPISERVE_INFERENCE, &session));
  told("self", mpiserve_open(MPI_COMM_SELF, MPISERVE_SIMULATION, &session));
  told("null", mpiserve_open(MPI_COMM_NULL, MPISERVE_SIMULATION, &session));
  if (told("open", mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session))) return;
  told("second", mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &second));
  told("find", mpiserve_service_find(session, "twice", &service));
  told("infer", mpiserve_infer(service, 1, &in, 1, &out, 60, NULL));
  say("twice", y[0][0] + y[1][2]);
#ifdef CLOSES
  told("close", mpiserve_close(session));
  told("closed", mpiserve_close(session));
  told("reopen", mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
#endif
}
#endif

int main(int argc, char **argv) {
  int key;
  MPI_Init(&argc, &argv);
#ifdef ABORTS
  if (rank_of(MPI_COMM_WORLD) == 1) MPI_Abort(MPI_COMM_WORLD, 3);
  MPI_Barrier(MPI_COMM_WORLD);
#endif
  MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, at_end, &key, NULL);
  MPI_Comm_set_attr(MPI_COMM_SELF, key, NULL);
  make_plate();
#ifdef ASKS
  ask();
#endif
  heat();
  say("heat", heat_here());
  splits();
  groups();
  windows();
  attributes();
  errors();
  files();
  MPI_Comm_free(&plate);
  MPI_Finalize();
  return 0;
}
