#include <mpiserve.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

struct bench_client {
  mpiserve_session *session;
  mpiserve_service *service;
};

/* Where a request's rows are: ordinary memory, or a buffer of the head's window. */
typedef struct request_memory {
  int in_place;
  mpiserve_buffer buffer;
  void *input, *output;
} request_memory;

const char *bench_client_open(MPI_Comm world, bench_client **client) {
  bench_client *made = calloc(1, sizeof *made);
  if (!made) return "no memory for a client";
  int code = mpiserve_open(world, MPISERVE_SIMULATION, &made->session);
  if (!code) code = mpiserve_service_find(made->session, "bench", &made->service);
  if (code) {
    free(made);
    return mpiserve_last_error();
  }
  *client = made;
  return NULL;
}

const char *bench_client_close(bench_client *client) {
  int code = mpiserve_close(client->session);
  free(client);
  return code ? mpiserve_last_error() : NULL;
}

void bench_client_handles(const bench_client *client, void **session, void **service) {
  *session = client->session;
  *service = client->service;
}

static const char *take(mpiserve_service *service, int64_t rows, request_memory *memory) {
  int64_t bytes = rows * (int64_t)sizeof(double);
  if (memory->in_place) {
    if (mpiserve_buffer_take(service, rows, &memory->buffer)) return mpiserve_last_error();
    memory->input = memory->buffer.inputs[0];
    memory->output = memory->buffer.outputs[0];
    memset(memory->input, 1, (size_t)bytes);
    return NULL;
  }
  memory->input = bench_memory(bytes, 1);
  memory->output = bench_memory(bytes, 2);
  return memory->input && memory->output ? NULL : "no memory for a request";
}

static void give(mpiserve_service *service, request_memory *memory) {
  if (memory->in_place) {
    mpiserve_buffer_give(service, &memory->buffer);
    return;
  }
  free(memory->input);
  free(memory->output);
}

static const char *ask(mpiserve_service *service, const mpiserve_tensor *in,
                       const mpiserve_tensor *out, int64_t warm, int64_t rounds, int64_t *samples) {
  for (int64_t i = -warm; i < rounds; i++) {
    int64_t begin = bench_now();
    int code = mpiserve_infer(service, 1, in, 1, out, MPISERVE_FOREVER, NULL);
    if (code) return mpiserve_last_error();
    if (i >= 0) samples[i] = bench_now() - begin;
  }
  return NULL;
}

static const char *ask_doubles(mpiserve_service *service, const request_memory *memory,
                               int64_t rows, int64_t warm, int64_t rounds, int64_t *samples) {
  mpiserve_tensor in = {"x", memory->input, MPISERVE_FLOAT64, 1, {rows}};
  mpiserve_tensor out = {"y", memory->output, MPISERVE_FLOAT64, 1, {rows}};
  const char *failed = ask(service, &in, &out, warm, rounds, samples);
  if (!failed && memcmp(memory->input, memory->output, (size_t)rows * sizeof(double)))
    failed = "the service brought back other rows than it got";
  return failed;
}

const char *bench_client_sample(bench_client *client, int in_place, int64_t bytes, int64_t warm,
                                int64_t rounds, int64_t *samples) {
  int64_t rows = bytes / (int64_t)sizeof(double);
  request_memory memory = {.in_place = in_place};
  const char *failed = take(client->service, rows, &memory);
  if (failed) return failed;
  failed = ask_doubles(client->service, &memory, rows, warm, rounds, samples);
  give(client->service, &memory);
  return failed;
}

const char *bench_client_row(bench_client *client, int64_t width, int64_t warm, int64_t rounds,
                             int64_t *samples) {
  float *x = calloc((size_t)width, sizeof *x), *y = calloc((size_t)width, sizeof *y);
  mpiserve_tensor in = {"x", x, MPISERVE_FLOAT32, 2, {1, width}};
  mpiserve_tensor out = {"y", y, MPISERVE_FLOAT32, 2, {1, width}};
  const char *failed =
      x && y ? ask(client->service, &in, &out, warm, rounds, samples) : "no memory for a row";
  free(x);
  free(y);
  return failed;
}
