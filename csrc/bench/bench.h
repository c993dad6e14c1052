/* bench: what `python -m mpiserve bench` measures in C, over mpi.h and mpiserve.h alone, but for
 * the hand-over to a child.
 *
 * A sampler runs on both ranks of comm: rank 0 sends and rank 1 answers, warm + rounds
 * times. On rank 0 samples[i] is the time of round i in nanoseconds; rank 1 gives no
 * samples. bytes go each way. Memory is made and touched before the first round.
 * Returns NULL, or a static text that says what went wrong. */
#ifndef BENCH_H
#define BENCH_H

#include <mpi.h>
#include <stdint.h>

#include "mpiserve.h"

#ifdef MPISERVE_MPI_ABI /* see csrc/mpi/library.c */
#define MPI_Comm_f2c MPI_Comm_fromint
#endif

/* Into windows of MPI_Win_allocate: Put and flush of the payload, then of a flag. */
const char *bench_floor_rma(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                            int64_t *samples);

/* Into and out of the window of rank 1, which only makes progress: Put and flush, Get and
 * flush. */
const char *bench_floor_put_get(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                                int64_t *samples);

/* Two atomic words on cache lines of their own, in memory that both ranks share.
 * bytes is that of a word: 8. */
const char *bench_floor_flag(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                             int64_t *samples);

/* What Linux takes to wake a sleeper in another process, by a futex: rank 1 sleeps, is woken, and
 * sets a word, at which rank 0 looks all the time; or sleeps and is woken too. bytes is 8. */
const char *bench_floor_wake(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                             int64_t *samples);
const char *bench_floor_wake_both(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                                  int64_t *samples);

/* A call from a head to its child and its end, by csrc/base/handover; bytes is 8, and nothing else
 * comes with the call. The child looks for calls, or sleeps when one comes; or both sleep whenever
 * they wait. */
const char *bench_handover_spinning(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                                    int64_t *samples);
const char *bench_handover_asleep(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                                  int64_t *samples);
const char *bench_handover_both_asleep(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                                       int64_t *samples);

/* MPI_Send and MPI_Recv. */
const char *bench_send_recv(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                            int64_t *samples);

/* A C program as a simulation rank: it queries the service "bench", float64 [-1], which
 * answers with what it gets. Open and close are collective over the world, in
 * which another rank serves; texts are those of mpiserve_last_error(). */
typedef struct bench_client bench_client;
const char *bench_client_open(MPI_Comm world, bench_client **client);
const char *bench_client_sample(bench_client *client, int in_place, int64_t bytes, int64_t warm,
                                int64_t rounds, int64_t *samples);
const char *bench_client_close(bench_client *client);

/* The handles of a client, for a caller in another language. */
void bench_client_handles(const bench_client *client, void **session, void **service);

/* One row of float32 [-1, width], of zeros, to a service "bench" that returns as many. */
const char *bench_client_row(bench_client *client, int64_t width, int64_t warm, int64_t rounds,
                             int64_t *samples);

/* The same row, by an engine in this process: no MPI. */
const char *bench_engine_sample(const char *library, const char *model, int64_t width, int64_t warm,
                                int64_t rounds, int64_t *samples);

/* ---- for the samplers themselves */

int64_t bench_now(void);

/* Memory that has been touched, aligned to cache lines, its bytes a pattern of seed;
 * NULL if there is none. */
void *bench_memory(int64_t bytes, int seed);

#endif
