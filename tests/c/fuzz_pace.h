/* fuzz_pace: time steps of the random program: each gets the answer of the step that is due,
 * whatever happens meanwhile. */
#ifndef FUZZ_PACE_H
#define FUZZ_PACE_H

#include "fuzz_prepare.h"

enum { MOST_STEPS = 12 };

typedef struct paced {
  mpiserve_service *service;
  mpiserve_pace pace;
  mpiserve_pace_options options;
  asked steps[MOST_STEPS];
  int begun; /* the step at which it began, or began anew */
} paced;

/* Mostly of as many rows as the step before, and of the same dimensions. */
static void begin_of_step(client *c, paced *p, const service *s, int n) {
  asked *a = &p->steps[n];
  if (n && chance(&c->d, 90)) {
    const asked *before = &p->steps[n - 1];
    *a = (asked){.state = ALIVE, .s = s, .rows = before->rows, .least = c->least[s->number]};
    a->sized = before->sized;
    if (s->free) a->s = &a->sized;
  } else {
    begin_at(c, a, s, some_rows(c, s));
    p->begun = n; /* unless it has the same shape all the same */
  }
  a->deadline = p->options.deadline;
  place_own(a);
  fill(a, &c->number);
}

static int same_lengths(int n, const mpiserve_spec *specs, int sizes, int others) {
  for (int i = 0; i < n; i++)
    for (int k = has_rows(&specs[i]); k < specs[i].ndim; k++)
      if (length(&specs[i], k, sizes) != length(&specs[i], k, others)) return 0;
  return 1;
}

static int has_shape_of(const asked *a, const asked *b) {
  const mpiserve_description *d = &a->s->d;
  return a->rows == b->rows &&
         same_lengths(d->n_inputs, d->inputs, a->s->in_sizes, b->s->in_sizes) &&
         same_lengths(d->n_outputs, d->outputs, a->s->out_sizes, b->s->out_sizes);
}

static int step_in_parts(client *c, const paced *p, const asked *a, mpiserve_stats *stats) {
  handed x = hand(c, a);
  int code = MPISERVE_ETIMEOUT;
  if (chance(&c->d, 30))
    code = mpiserve_pace_step(p->service, &p->pace, x.n_in, x.in, x.n_out, x.out, 0, stats);
  if (code == MPISERVE_ETIMEOUT)
    code = mpiserve_pace_step(p->service, &p->pace, x.n_in, x.in, x.n_out, x.out, MPISERVE_FOREVER,
                              stats);
  rows_set(&a->s->in, a->in, 0, a->rows, NOBODYS);
  return code;
}

static void check_step(const paced *p, int n, const mpiserve_stats *stats) {
  int64_t every = p->options.every, since = n - p->begun - p->options.lag;
  int from = p->begun + (int)(since > 0 ? since / every * every : 0);
  asked shown = p->steps[from];
  memcpy(shown.out, p->steps[n].out, sizeof shown.out);
  if (stats->age != n - from || stats->extrapolated_rows)
    wrong("step %d from %d: %lld steps old: %s", n, p->begun, (long long)stats->age,
          name_of(&shown));
  check_stats(&shown, stats);
  if (!is_answered(&shown, generation_of(&shown, stats)))
    wrong("step %d has another answer than that of step %d: %s", n, from, name_of(&shown));
}

static void walk_step(client *c, paced *p, const service *s, int n) {
  mpiserve_stats stats = NOT_WRITTEN;
  int begun = p->begun;
  begin_of_step(c, p, s, n);
  const asked *a = &p->steps[n];
  if (n && begun != n && has_shape_of(a, &p->steps[n - 1])) p->begun = begun;
  doing("step %d of a pace, every %lld, lag %lld: %s", n, (long long)p->options.every,
        (long long)p->options.lag, name_of(a));
  int code = step_in_parts(c, p, a, &stats);
  if (!code)
    check_step(p, n, &stats);
  else if (!is_expected(c, a, code))
    wrong("step %d of a pace: %d, %s: %s", n, code, mpiserve_last_error(), name_of(a));
  if (code) p->begun = n + 1;
}

/* Requests of steps that nobody comes to any more are under way when it closes, or the session. */
static void walk(client *c) {
  static paced p;
  const service *s = &c->w->services[pick(&c->d, c->w->n)];
  p = (paced){.service = c->services[s->number]};
  p.options.every = s->d.reproducible ? 1 : 1 + pick(&c->d, 3);
  p.options.lag = s->d.reproducible ? 0 : pick(&c->d, 7);
  p.options.priority = pick(&c->d, 201) - 100;
  p.options.deadline = ANY_OF(&c->d, 0, 0, 3e-3, 600);
  must(mpiserve_pace_open(p.service, &p.options, &p.pace), "pace_open");
  int steps = 1 + pick(&c->d, MOST_STEPS);
  for (int n = 0; n < steps; n++) {
    walk_step(c, &p, s, n);
    if (!chance(&c->d, 5)) continue;
    must(mpiserve_pace_restart(p.service, &p.pace), "pace_restart");
    p.begun = n + 1;
  }
  if (chance(&c->d, 70)) must(mpiserve_pace_close(p.service, &p.pace), "pace_close");
  for (int n = 0; n < steps; n++) forget(&p.steps[n]);
}

#endif
