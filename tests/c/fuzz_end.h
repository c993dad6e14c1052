/* fuzz_end: how requests of the random program may end, and what answers when no replica does. */
#ifndef FUZZ_END_H
#define FUZZ_END_H

#include "fuzz_asked.h"

typedef struct client {
  const world *w;
  mpiserve_session *session;
  mpiserve_service *services[MAX_SERVICES];
  dice d;
  uint64_t number; /* of rows made */
  int64_t steps;
  int64_t least[MAX_SERVICES]; /* generation of what is submitted from now on */
  int unloaded[MAX_SERVICES];
  asked asked[MAX_ASKED];
  taken taken[MAX_TAKEN];
} client;

static const mpiserve_stats NOT_WRITTEN = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};

/* ---- how requests may end --------------------------------------------------------------- */

static int is_expected(const client *c, const asked *a, int code) {
  const char *text = mpiserve_last_error();
  const service *s = a->s;
  int ours = strstr(text, "fuzz:") != NULL;
  if (code == MPISERVE_EDEADLINE) return a->deadline > 0 && a->deadline < 1;
  if (code == MPISERVE_EFULL) return s->d.max_queue_rows && s->d.on_full == MPISERVE_REJECT;
  if (code == MPISERVE_EPEER) return c->w->failing >= 0;
  if (code == MPISERVE_EMODEL && s->suspends_at >= 0 && s->able < 2 && strstr(text, "suspended"))
    return 1;
  return (code == MPISERVE_EMODEL || code <= -1000) && ours && (s->fails || s->changes);
}

/* Pieces may have been answered in different ways. */
static void check_stats_of_fallback(const asked *a, const mpiserve_stats *s) {
  int64_t answered = s->local_rows + s->fallback_rows;
  int by_function = s->source == MPISERVE_FALLBACK, by_local = s->source == MPISERVE_LOCAL;
  if (s->rows != a->rows || answered < 1 || answered > a->rows || s->total_ns < 0 ||
      (!is_cut(a) && answered != a->rows) || (s->fallback_rows && !by_function))
    wrong("%lld and %lld of %lld rows by fallbacks: %s", (long long)s->local_rows,
          (long long)s->fallback_rows, (long long)s->rows, name_of(a));
  if ((by_function && !(a->s->falls & TO_FUNCTION)) || (by_local && !(a->s->falls & TO_LOCAL)))
    wrong("a fallback that there is not has answered: %s", name_of(a));
}

static void check_stats(const asked *a, const mpiserve_stats *s) {
  int64_t generation = s->generation;
  int keeps = a->s->d.cache_rows > 0;
  int64_t least = keeps ? 0 : is_cut(a) ? 1 : s->rows; /* of the batch */
  if (s->source != MPISERVE_MODEL) {
    check_stats_of_fallback(a, s);
    return;
  }
  if (s->local_rows || s->fallback_rows) wrong("the model has not answered: %s", name_of(a));
  if (s->rows != a->rows || s->batch_rows < least || s->batch_rows > a->s->d.max_batch_rows ||
      s->batch_requests < (a->rows > 0 && !keeps) || s->queue_ns < 0 || s->compute_ns < 0 ||
      s->total_ns < 0)
    wrong("statistics of another: %lld of %lld rows, %lld requests, %lld + %lld of %lld ns: %s",
          (long long)s->rows, (long long)s->batch_rows, (long long)s->batch_requests,
          (long long)s->queue_ns, (long long)s->compute_ns, (long long)s->total_ns, name_of(a));
  if (generation < a->least && (a->rows || !a->s->falls))
    wrong("generation %lld: %s", (long long)generation, name_of(a));
}

static int is_empty(const mpiserve_stats *s) {
  const mpiserve_stats none = {0};
  return !memcmp(s, &none, sizeof none);
}

/* They tell what the head got to do. */
static void check_stats_of_error(const asked *a, const mpiserve_stats *s) {
  if ((s->rows && s->rows != a->rows) || s->batch_rows || s->batch_requests || s->generation ||
      s->compute_ns)
    wrong("statistics of %lld rows with an error: %s", (long long)s->rows, name_of(a));
}

static void end_with_error(client *c, asked *a, int code, const mpiserve_stats *stats) {
  if (!is_expected(c, a, code)) wrong("%d, %s: %s", code, mpiserve_last_error(), name_of(a));
  if (stats) check_stats_of_error(a, stats);
  check_inputs(a);
  if (code == MPISERVE_EDEADLINE)
    give_up(a);
  else
    close_case(a);
}

/* Fallbacks answer as the first generation does. */
static int64_t generation_of(const asked *a, const mpiserve_stats *stats) {
  if (!stats) return 0;
  return stats->source == MPISERVE_MODEL || is_cut(a) ? stats->generation : 1;
}

static void end_with_answer(asked *a, const mpiserve_stats *stats) {
  if (stats) check_stats(a, stats);
  check_answer(a, generation_of(a, stats));
  if (a->s->falls && a->late) spoil(a);
  forget(a);
}

static void end(client *c, asked *a, int code, const mpiserve_stats *stats) {
  mpiserve_request copy = {a->id};
  if (a->request.id) wrong("it has ended, but its id is not 0: %s", name_of(a));
  if (code)
    end_with_error(c, a, code, stats);
  else
    end_with_answer(a, stats);
  if (copy.id && mpiserve_cancel(c->session, &copy) != MPISERVE_ESTATE)
    wrong("a request that has ended can be cancelled");
}

/* The call ended no request. */
static void time_out(const asked *a, const mpiserve_stats *stats) {
  if (stats && !is_empty(stats)) wrong("statistics without an end: %s", name_of(a));
}

/* ---- fallbacks -------------------------------------------------------------------------- */

/* It gets what was submitted, and answers as the first generation does. */
static int answer_instead(void *data, int64_t rows, const void *const *inputs, void *const *outputs,
                          int code, const char *why) {
  const service *s = data;
  uint8_t in[MAX_ROW_BYTES], out[MAX_ROW_BYTES];
  if (rows < 1 || !code || !*why) wrong("a fallback for %lld rows, %d", (long long)rows, code);
  for (int64_t i = 0; i < rows; i++) {
    row_get(&s->in, (void *const *)inputs, i, in);
    if (!row_right(in, s->in.row, me.rank))
      wrong("row %lld of a fallback of '%s' was not submitted; %s", (long long)i, s->d.name, why);
    row_answer(s, in, 1, out);
    row_put(&s->out, outputs, i, out);
  }
  return rows % 7 == 3 ? mpiserve_error(MPISERVE_EARG, "fuzz: a fallback") : 0;
}

#endif
