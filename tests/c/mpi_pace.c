/* ranks: 2
 *
 * Requests that follow time steps: which answer each step gets and how old it is, for many numbers
 * of every and lag, held and extrapolated; that steps do not wait; errors, shapes, fallbacks. */
#define _GNU_SOURCE
#include <math.h>
#include <mpi.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

enum { SQUARE, LATE, BOUNDED, WHOLE, SERVICES };
/* Requests to bounded are batches of their own: an error is that of one. */
static const char *const NAMES[SERVICES] = {"square", "late", "bounded", "whole"};
enum { MOST = 4096, LAG = 3, STEPS = 15, NAP_MS = 300 };
static const double LONG = 60, GREATEST = 50;

/* ---- the inference rank -------------------------------------------------------------- */

static mpiserve_description describe(int number) {
  int dtype = number == WHOLE ? MPISERVE_INT32 : MPISERVE_FLOAT64;
  mpiserve_spec x = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_spec y = {.name = "y", .dtype = dtype, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.n_inputs = 1, .n_outputs = 1, .max_batch_rows = MOST};
  snprintf(d.name, sizeof d.name, "%s", NAMES[number]);
  if (number == BOUNDED) y.check = MPISERVE_BOUNDS, y.max = GREATEST, d.max_batch_rows = 1;
  d.inputs[0] = x;
  d.outputs[0] = y;
  return d;
}

static int square(int64_t rows, const double *x, double *y) {
  if (x[0] >= 1000) usleep(NAP_MS * 1000);
  for (int64_t i = 0; i < rows; i++) {
    if (x[i] < 0) return MPISERVE_EMODEL;
    y[i] = x[i] * x[i];
  }
  return MPISERVE_OK;
}

static double squares[STEPS + 1];
static mpiserve_ticket tickets[STEPS + 1];
static int held; /* of one row each */

static int answer_held(mpiserve_session *session, int i) {
  int wanted;
  const void *outputs[] = {&squares[i]};
  int code = mpiserve_ticket_wanted(session, &tickets[i], &wanted);
  return code || !wanted ? code : mpiserve_ticket_reply(session, &tickets[i], outputs);
}

/* Answers a request when LAG more have come, but the first one at once: a step that waited for
 * more would wait for ever. */
static int answer_late(mpiserve_session *session, const mpiserve_batch *batch) {
  int before = held;
  held += batch->requests;
  square(batch->rows, batch->inputs[0], &squares[before]);
  int code = mpiserve_batch_hold(session, &tickets[before]);
  if (!code && !before) code = answer_held(session, 0);
  for (int i = before > LAG ? before - LAG : 1; i < held - LAG && !code; i++)
    code = answer_held(session, i);
  return code;
}

static int answer(mpiserve_session *session, const mpiserve_batch *batch) {
  if (batch->service == LATE) return answer_late(session, batch);
  if (square(batch->rows, batch->inputs[0], batch->outputs[0]))
    return mpiserve_batch_fail(session, MPISERVE_EMODEL, "negative");
  return mpiserve_batch_reply(session, (const void *const *)batch->outputs);
}

/* Those that were cancelled have ended when this has been seen. */
static void look_at_held(mpiserve_session *session) {
  for (int i = 0, wanted; i < held; i++)
    if (tickets[i].id) CHECK(!mpiserve_ticket_wanted(session, &tickets[i], &wanted));
}

static void serve(mpiserve_session *session) {
  mpiserve_description descriptions[SERVICES];
  for (int i = 0; i < SERVICES; i++) descriptions[i] = describe(i);
  CHECK(!mpiserve_publish(session, SERVICES, descriptions));
  int code;
  do {
    mpiserve_batch batch;
    code = mpiserve_batch_next(session, 0.1, &batch);
    if (code == MPISERVE_ETIMEOUT) look_at_held(session);
    if (code == MPISERVE_OK) CHECK((code = answer(session, &batch)) == MPISERVE_OK);
  } while (code == MPISERVE_OK || code == MPISERVE_ETIMEOUT);
  CHECK(code == MPISERVE_ECLOSED);
}

/* ---- the simulation rank ------------------------------------------------------------- */

static mpiserve_session *session;
static mpiserve_service *services[SERVICES];
static double x[MOST], y[MOST];

static mpiserve_pace begin(int service, int64_t every, int64_t lag, int extrapolate) {
  mpiserve_pace pace;
  const mpiserve_pace_options options = {.every = every, .lag = lag, .extrapolate = extrapolate};
  CHECK(!mpiserve_pace_open(services[service], &options, &pace) && pace.id);
  return pace;
}

/* Row i asks for value + i. The inputs change at once. */
static int step(int service, const mpiserve_pace *pace, int64_t rows, double value, double timeout,
                mpiserve_stats *stats) {
  mpiserve_tensor in = {.data = x, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {rows}}, out = in;
  out.data = y;
  for (int64_t i = 0; i < rows; i++) x[i] = value + (double)i, y[i] = -7;
  int code = mpiserve_pace_step(services[service], pace, 1, &in, 1, &out, timeout, stats);
  for (int64_t i = 0; i < rows; i++) x[i] = -1;
  return code;
}

static void end(int service, mpiserve_pace *pace) {
  CHECK(!mpiserve_pace_close(services[service], pace) && !pace->id);
}

/* Is the answer that of value, or of a line through it and the one of so many steps before? */
static void expect(int64_t rows, double value, double every, double age, int64_t *on_line) {
  for (int64_t i = 0; i < rows; i++) {
    double last = (value + (double)i) * (value + (double)i);
    double before = (value - every + (double)i) * (value - every + (double)i);
    double right = on_line ? last + age / every * (last - before) : last;
    CHECK(fabs(y[i] - right) <= 1e-9 * fabs(right));
  }
  if (on_line) *on_line += rows;
}

static void check_ages(int64_t rows, int64_t every, int64_t lag, int extrapolate) {
  mpiserve_counters before, after;
  mpiserve_stats stats;
  mpiserve_pace pace = begin(SQUARE, every, lag, extrapolate);
  int64_t sum = 0, on_line = 0, told = 0;
  CHECK(!mpiserve_counters_get(session, &before));
  for (int64_t n = 0; n < STEPS; n++) {
    int64_t asked = n < lag ? 0 : (n - lag) / every * every, age = n - asked;
    CHECK(!step(SQUARE, &pace, rows, (double)n, LONG, &stats));
    CHECK(stats.age == age && age < lag + every && stats.rows == rows && stats.generation == 1);
    int is_on_line = extrapolate && age && asked;
    expect(rows, (double)asked, (double)every, (double)age, is_on_line ? &on_line : NULL);
    sum += age;
    told += stats.extrapolated_rows;
  }
  CHECK(!mpiserve_counters_get(session, &after) && told == on_line);
  CHECK(after.paced_steps - before.paced_steps == STEPS);
  CHECK(after.paced_age_sum - before.paced_age_sum == sum);
  CHECK(after.paced_age_max >= (lag + every - 1 < STEPS ? lag + every - 1 : 0));
  end(SQUARE, &pace);
}

static void check_all_ages(void) {
  for (int extrapolate = 0; extrapolate < 2; extrapolate++)
    for (int64_t every = 1; every < 5; every++)
      for (int64_t lag = 0; lag < 8; lag++) {
        check_ages(3, every, lag, extrapolate);
        if (every == 2) check_ages(MOST, every, lag, extrapolate);
      }
}

static void check_nothing_waits(void) {
  mpiserve_stats stats;
  mpiserve_pace pace = begin(LATE, 1, LAG, 0);
  for (int n = 0; n < STEPS; n++) {
    CHECK(!step(LATE, &pace, 1, n, LONG, &stats));
    CHECK(stats.age == (n < LAG ? n : LAG) && y[0] == pow(n < LAG ? 0 : n - LAG, 2));
  }
  end(LATE, &pace);
}

static void check_errors(void) {
  mpiserve_stats stats;
  mpiserve_pace pace = begin(BOUNDED, 1, 2, 0);
  for (int n = 0; n < 5; n++) CHECK(!step(BOUNDED, &pace, 1, n == 3 ? -3 : n, LONG, &stats));
  CHECK(step(BOUNDED, &pace, 1, 5, LONG, &stats) == MPISERVE_EMODEL);
  CHECK_TEXT(mpiserve_last_error(), "step 5 of a pace, asked 2 steps before: negative");
  CHECK(!step(BOUNDED, &pace, 1, 6, LONG, &stats) && stats.age == 0 && y[0] == 36);
  CHECK(!step(BOUNDED, &pace, 1, 7, LONG, &stats) && stats.age == 1 && y[0] == 36);
  CHECK(!mpiserve_pace_restart(services[BOUNDED], &pace));
  CHECK(step(BOUNDED, &pace, 1, -8, LONG, &stats) == MPISERVE_EMODEL);
  CHECK(!strcmp(mpiserve_last_error(), "negative"));
  end(BOUNDED, &pace);
}

static void check_shapes(void) {
  mpiserve_stats stats;
  mpiserve_pace pace = begin(SQUARE, 2, 1, 1);
  const int64_t rows[] = {3, 3, 3, 4, 4, MOST, MOST, 1}, ages[] = {0, 1, 2, 0, 1, 0, 1, 0};
  for (int n = 0; n < 8; n++) {
    CHECK(!step(SQUARE, &pace, rows[n], n, LONG, &stats) && stats.age == ages[n]);
    expect(rows[n], (double)(n - ages[n]), 2, 0, NULL);
    CHECK(step(SQUARE, &pace, 0, n, LONG, &stats) == MPISERVE_EROWS && !stats.age);
  }
  end(SQUARE, &pace);
}

static void check_timeout(void) {
  mpiserve_stats stats;
  mpiserve_pace pace = begin(SQUARE, 1, 0, 0);
  CHECK(step(SQUARE, &pace, 1, 2000, 0, &stats) == MPISERVE_ETIMEOUT && y[0] == -7);
  CHECK(!step(SQUARE, &pace, 1, 3, LONG, &stats) && stats.age == 0 && y[0] == 4e6);
  CHECK(step(SQUARE, &pace, 1, 2000, 0, &stats) == MPISERVE_ETIMEOUT);
  CHECK(!mpiserve_pace_restart(services[SQUARE], &pace));
  CHECK(!step(SQUARE, &pace, 1, 3, LONG, &stats) && stats.age == 0 && y[0] == 9);
  end(SQUARE, &pace);
}

static int add_one(void *data, int64_t rows, const void *const *inputs, void *const *outputs,
                   int code, const char *why) {
  (void)data, (void)why;
  for (int64_t i = 0; i < rows; i++) ((double *)outputs[0])[i] = ((const double *)inputs[0])[i] + 1;
  return code != MPISERVE_EMODEL;
}

/* It gets the inputs of the step that asked. A line does not lead from the model to it. */
static void check_fallback(void) {
  mpiserve_stats stats;
  mpiserve_pace pace = begin(BOUNDED, 1, 2, 1);
  CHECK(!mpiserve_fallback_set(services[BOUNDED], add_one, NULL));
  for (int n = 0; n < 5; n++) CHECK(!step(BOUNDED, &pace, 1, n == 3 ? -3 : n, LONG, &stats));
  CHECK(stats.source == MPISERVE_MODEL && stats.extrapolated_rows == 1);
  CHECK(!step(BOUNDED, &pace, 1, 5, LONG, &stats) && y[0] == -2);
  CHECK(stats.source == MPISERVE_FALLBACK && stats.age == 2 && !stats.extrapolated_rows);
  CHECK(!step(BOUNDED, &pace, 1, 6, LONG, &stats) && y[0] == 16 && !stats.extrapolated_rows);
  CHECK(!step(BOUNDED, &pace, 1, 7, LONG, &stats) && y[0] == 43 && stats.extrapolated_rows == 1);
  CHECK(!mpiserve_fallback_set(services[BOUNDED], NULL, NULL));
  end(BOUNDED, &pace);
}

/* No value over 50 is an answer: where a line leads there, the row is held. */
static void check_bounds(void) {
  mpiserve_stats stats;
  mpiserve_pace pace = begin(BOUNDED, 2, 0, 1);
  CHECK(!step(BOUNDED, &pace, 2, 3, LONG, &stats) && !step(BOUNDED, &pace, 2, 4, LONG, &stats));
  CHECK(!step(BOUNDED, &pace, 2, 5, LONG, &stats) && y[0] == 25 && y[1] == 36);
  CHECK(!step(BOUNDED, &pace, 2, 6, LONG, &stats) && y[0] == 33 && y[1] == 46);
  CHECK(stats.extrapolated_rows == 2 && stats.age == 1);
  end(BOUNDED, &pace);
  pace = begin(BOUNDED, 1, 2, 1);
  for (int n = 0; n < 4; n++) CHECK(!step(BOUNDED, &pace, 2, n ? 4 : 1, LONG, &stats));
  CHECK(y[0] == 46 && y[1] == 25 && stats.extrapolated_rows == 1); /* 25 + 2 * 21 = 67 */
  end(BOUNDED, &pace);
}

static void refused(int service, int64_t every, int64_t lag, int extrapolate, const char *why) {
  mpiserve_pace pace = {1};
  const mpiserve_pace_options options = {.every = every, .lag = lag, .extrapolate = extrapolate};
  CHECK(mpiserve_pace_open(services[service], &options, &pace) == MPISERVE_EARG && !pace.id);
  CHECK_TEXT(mpiserve_last_error(), why);
}

static void check_wrong_use(void) {
  const mpiserve_pace_options wrong = {.priority = 101};
  refused(SQUARE, -1, 0, 0, "every is -1: it must be 1 to");
  refused(SQUARE, 1, -1, 0, "lag is -1: it must be 0 to");
  refused(SQUARE, 2, 128, 0, "over 64 would be under way");
  refused(WHOLE, 1, 1, 1, "output 'y': int32 cannot be extrapolated");
  mpiserve_pace pace = begin(SQUARE, 0, 1, 0), closed = pace;
  CHECK(mpiserve_pace_open(services[SQUARE], &wrong, &closed) == MPISERVE_EARG);
  CHECK(mpiserve_pace_open(services[SQUARE], NULL, NULL) == MPISERVE_EARG);
  CHECK(mpiserve_pace_step(services[SQUARE], NULL, 0, NULL, 0, NULL, 0, NULL) == MPISERVE_EARG);
  CHECK(step(BOUNDED, &pace, 1, 1, LONG, NULL) == MPISERVE_ESTATE);
  CHECK(step(SQUARE, &pace, 1, 2, LONG, NULL) == MPISERVE_OK && y[0] == 4);
  CHECK(step(SQUARE, &pace, 1, 2, NAN, NULL) == MPISERVE_EARG);
  closed = pace;
  end(SQUARE, &pace);
  CHECK(mpiserve_pace_close(services[SQUARE], &closed) == MPISERVE_ESTATE);
  CHECK(mpiserve_pace_restart(services[SQUARE], &closed) == MPISERVE_ESTATE);
  CHECK(step(SQUARE, &closed, 1, 1, LONG, NULL) == MPISERVE_ESTATE);
}

static void simulate(void) {
  for (int i = 0; i < SERVICES; i++) CHECK(!mpiserve_service_find(session, NAMES[i], &services[i]));
  check_all_ages();
  check_nothing_waits();
  check_errors();
  check_shapes();
  check_timeout();
  check_fallback();
  check_bounds();
  check_wrong_use();
  mpiserve_pace left = begin(SQUARE, 1, 2, 0); /* with a request under way, at close */
  for (int n = 0; n < 3; n++) CHECK(!step(SQUARE, &left, MOST, 1, LONG, NULL));
}

int main(int argc, char **argv) {
  int rank, provided;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  CHECK(!mpiserve_open(MPI_COMM_WORLD, rank ? MPISERVE_INFERENCE : MPISERVE_SIMULATION, &session));
  if (rank)
    serve(session);
  else
    simulate();
  CHECK(!mpiserve_close(session));
  MPI_Finalize();
  return check_result();
}
