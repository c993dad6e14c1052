/* fuzz_client: a simulation rank, or a guest, of the random program. */
#ifndef FUZZ_CLIENT_H
#define FUZZ_CLIENT_H

#include <unistd.h>

#include "fuzz_pace.h"

static void *kept[1 << 12]; /* buffers that were not given back belong to the process */
static int n_kept;

/* ---- submit ----------------------------------------------------------------------------- */

static void send(client *c, asked *a, const mpiserve_options *options) {
  handed x = hand(c, a);
  a->deadline = options ? options->deadline : 0;
  a->late = a->deadline > 0;
  doing("submit %s", name_of(a));
  int code = mpiserve_submit(x.service, x.n_in, x.in, x.n_out, x.out, options, &a->request);
  must(code, "submit");
  if (!code && !a->request.id) wrong("a request without an id");
  a->id = a->request.id;
  if (code) give_up(a);
}

static void submit(client *c) {
  asked *a = prepare(c);
  mpiserve_options options = {0};
  if (!a) return;
  if (chance(&c->d, 50)) options.deadline = ANY_OF(&c->d, 1e-6, 1e-4, 3e-3, 3e-2, 600);
  if (chance(&c->d, 50)) options.priority = pick(&c->d, 201) - 100;
  send(c, a, chance(&c->d, 50) ? &options : NULL);
}

/* Pieces of a buffer, one after the other, as programs have them that work on parts of their
 * data; some of them twice, some never. */
static void submit_pieces(client *c) {
  enum { PIECES = 3 };
  const service *s = &c->w->services[pick(&c->d, c->w->n)];
  taken *t = s->free ? NULL : find_taken(&c->d, c->taken, s, PIECES);
  for (int i = 0; i < PIECES && t; i++) {
    asked *a = begin(c, s, t->b.rows / PIECES);
    if (!a) return;
    put_input(a, t, a->rows * pick(&c->d, PIECES));
    place_own(a);
    fill(a, &c->number);
    send(c, a, NULL);
  }
}

static void infer(client *c) {
  mpiserve_stats stats = NOT_WRITTEN, *wanted = chance(&c->d, 50) ? &stats : NULL;
  asked *a = prepare(c);
  if (!a) return;
  handed x = hand(c, a);
  double timeout = ANY_OF(&c->d, 0, 1e-4, 2e-3, MPISERVE_FOREVER, MPISERVE_FOREVER);
  a->late = timeout >= 0;
  doing("infer %s within %g s", name_of(a), timeout);
  int code = mpiserve_infer(x.service, x.n_in, x.in, x.n_out, x.out, timeout, wanted);
  if (code == MPISERVE_ETIMEOUT && timeout >= 0)
    time_out(a, wanted), give_up(a);
  else
    end(c, a, code, wanted);
}

/* ---- record ----------------------------------------------------------------------------- */

/* As a model of a generation that is the time step. */
static void fill_outputs(asked *a, int64_t step) {
  uint8_t row[MAX_ROW_BYTES];
  for (int64_t i = 0; i < a->rows; i++) {
    row_answer(a->s, a->copy + (size_t)i * a->s->in.row, step, row);
    row_put(&a->s->out, a->out, i, row);
  }
}

static void check_record(const client *c, const asked *a, int code, int kept) {
  const service *s = &c->w->services[a->s->number];
  if (code == MPISERVE_EARG && s->d.overwrites && s->d.max_batch_rows == 1) return;
  if (code && (code != MPISERVE_EPEER || c->w->failing < 0))
    wrong("record: %d, %s: %s", code, mpiserve_last_error(), name_of(a));
  if ((kept && (code || !c->w->captured || s->free)) || (!kept && !code && s->captured))
    wrong("kept is %d: %s", kept, name_of(a));
  if (kept && s->captured) pairs.sent += a->rows;
}

static void begin_step(client *c) {
  doing("step");
  must(mpiserve_step(c->session), "step");
  c->steps++;
}

/* Arrays are of no use to anybody when it returns, and a step may begin before they are sent. */
static void record(client *c) {
  const service *s = &c->w->services[pick(&c->d, c->w->n)];
  asked *a = begin(c, s, some_rows(c, s));
  int kept = -1;
  if (!a) return;
  if (a->rows && !s->free && chance(&c->d, 30))
    place_input(&c->d, a, find_taken(&c->d, c->taken, s, a->rows));
  place_own(a);
  fill(a, &c->number);
  fill_outputs(a, c->steps);
  handed x = hand(c, a);
  doing("record %s", name_of(a));
  int code = mpiserve_record(x.service, x.n_in, x.in, x.n_out, x.out, &kept);
  check_record(c, a, code, kept);
  check_inputs(a);
  if (!a->in_buffer) rows_set(&a->s->in, a->in, 0, a->rows, NOBODYS);
  rows_set(&a->s->out, a->out, 0, a->rows, NOBODYS);
  forget(a);
  if (chance(&c->d, 50)) begin_step(c);
}

/* ---- test, wait, cancel ----------------------------------------------------------------- */

static void wait_for(client *c, asked *a, double timeout) {
  mpiserve_stats stats = NOT_WRITTEN, *wanted = chance(&c->d, 70) ? &stats : NULL;
  doing("wait %g s for %s", timeout, name_of(a));
  int code = mpiserve_wait(c->session, &a->request, timeout, wanted);
  if (code == MPISERVE_ETIMEOUT && timeout >= 0 && a->request.id)
    time_out(a, wanted);
  else
    end(c, a, code, wanted);
}

static void wait_for_one(client *c) {
  asked *a = one_that(c, ALIVE);
  if (a) wait_for(c, a, ANY_OF(&c->d, 0, 1e-4, 2e-3, MPISERVE_FOREVER));
}

static void wait_for_all(client *c) {
  for (asked *a; (a = one_that(c, ALIVE));) wait_for(c, a, MPISERVE_FOREVER);
}

static void test(client *c) {
  mpiserve_stats stats = NOT_WRITTEN;
  asked *a = one_that(c, ALIVE);
  int done = -1;
  if (!a) return;
  doing("test %s", name_of(a));
  int code = mpiserve_test(c->session, &a->request, &done, &stats);
  if (done == 1)
    end(c, a, code, &stats);
  else if (code || done)
    wrong("test: %d, done is %d", code, done);
  else
    time_out(a, &stats);
}

static void cancel_one(client *c, asked *a) {
  doing("cancel %s", name_of(a));
  must(mpiserve_cancel(c->session, &a->request), "cancel");
  if (a->request.id) wrong("it was cancelled, but its id is not 0: %s", name_of(a));
  give_up(a);
}

static void cancel(client *c) {
  asked *a = one_that(c, ALIVE);
  if (a) cancel_one(c, a);
}

static void look_again(client *c) {
  asked *a = one_that(c, OVER);
  if (!a) return;
  check_over(a);
  forget(a);
}

/* ---- buffers ---------------------------------------------------------------------------- */

static void take(client *c) {
  const service *s = &c->w->services[pick(&c->d, c->w->n)];
  taken *t = c->taken;
  while (t < c->taken + MAX_TAKEN && t->used) t++;
  if (t == c->taken + MAX_TAKEN) return;
  *t = (taken){.number = s->number};
  int64_t rows = s->d.rows == MPISERVE_RAGGED ? 1 : log_pick(&c->d, (int)s->d.max_batch_rows);
  doing("take a buffer of '%s', %lld rows", s->d.name, (long long)rows);
  int code = mpiserve_buffer_take(c->services[s->number], rows, &t->b);
  if (code == MPISERVE_ENOMEM || (code == MPISERVE_EPEER && c->w->failing >= 0)) return;
  must(code, "buffer_take");
  if (code) return;
  t->used = 1;
  rows_set(&s->out, t->b.outputs, 0, rows, NOBODYS);
  rows_set(&s->in, t->b.inputs, 0, rows, NOBODYS);
}

static int is_used(const client *c, const taken *t) {
  for (int i = 0; i < MAX_ASKED; i++) {
    const asked *a = &c->asked[i];
    if (a->state == ALIVE && (a->in_buffer == t || a->out_buffer == t)) return 1;
  }
  return 0;
}

/* Requests that were given up may use it still, at the head. */
static void part_with(client *c, const taken *t) {
  for (int i = 0; i < MAX_ASKED; i++) {
    asked *a = &c->asked[i];
    if (a->state == FREE || (a->in_buffer != t && a->out_buffer != t)) continue;
    check_over(a);
    forget(a);
  }
}

static void give_too_early(client *c, taken *t) {
  doing("give a buffer of %lld rows back that is in use", (long long)t->b.rows);
  int code = mpiserve_buffer_give(c->services[t->number], &t->b);
  if (code != MPISERVE_ESTATE || !t->b.id) wrong("a buffer that is in use was taken back");
}

static void give_one(client *c, taken *t) {
  if (!t->used) return;
  if (is_used(c, t)) {
    give_too_early(c, t);
    return;
  }
  part_with(c, t);
  doing("give a buffer of %lld rows back", (long long)t->b.rows);
  must(mpiserve_buffer_give(c->services[t->number], &t->b), "buffer_give");
  if (t->b.id) wrong("a buffer that was given back has an id");
  t->used = 0;
}

static void give(client *c) { give_one(c, &c->taken[pick(&c->d, MAX_TAKEN)]); }

/* Gives all up that use a buffer, and then the buffer itself. */
static void give_used(client *c) {
  taken *t = &c->taken[pick(&c->d, MAX_TAKEN)];
  for (int i = 0; i < MAX_ASKED && t->used; i++) {
    asked *a = &c->asked[i];
    if (a->state == ALIVE && (a->in_buffer == t || a->out_buffer == t)) cancel_one(c, a);
  }
  give_one(c, t);
}

/* ---- other models ----------------------------------------------------------------------- */

static void reload(client *c) {
  const service *s = &c->w->services[pick(&c->d, c->w->n)];
  double timeout = ANY_OF(&c->d, 0, 1e-3, 60, 60);
  if (!s->changes || c->w->index[me.rank]) return;
  int load = chance(&c->d, 80), failing = c->w->failing >= 0;
  doing("%s '%s' within %g s", load ? "reload" : "unload", s->d.name, timeout);
  int code = load ? mpiserve_reload(c->session, s->d.name, "fuzz", timeout)
                  : mpiserve_unload(c->session, s->d.name, timeout);
  if (load) c->unloaded[s->number] = 0;
  c->least[s->number] += load && !code;
  if (!code || (code == MPISERVE_EMODEL && strstr(mpiserve_last_error(), "fuzz:"))) return;
  if ((code == MPISERVE_ETIMEOUT && timeout < 60) || (code == MPISERVE_EPEER && failing)) return;
  wrong("reload or unload of '%s': %d, %s", s->d.name, code, mpiserve_last_error());
}

/* ---- the life of a client --------------------------------------------------------------- */

static void describe(client *c) {
  mpiserve_description d;
  int replicas, head, transport, number = pick(&c->d, c->w->n);
  const service *s = &c->w->services[number];
  must(mpiserve_service_describe(c->services[number], &d, &replicas, &head, &transport),
       "service_describe");
  if (strcmp(d.name, s->d.name) || replicas != s->able ||
      memcmp(d.inputs, s->d.inputs, sizeof d.inputs))
    wrong("'%s' is described as '%s'", s->d.name, d.name);
}

static void work(client *c) {
  int x = pick(&c->d, 100);
  if (x < 32)
    submit(c);
  else if (x < 35)
    submit_pieces(c);
  else if (x < 41)
    infer(c);
  else if (x < 46)
    record(c);
  else if (x < 53)
    test(c);
  else if (x < 64)
    wait_for_one(c);
  else if (x < 66)
    wait_for_all(c);
  else if (x < 74)
    cancel(c);
  else if (x < 82)
    look_again(c);
  else if (x < 89)
    take(c);
  else if (x < 92)
    give(c);
  else if (x < 95)
    give_used(c);
  else if (x < 96)
    reload(c);
  else if (x < 97)
    describe(c);
  else if (x < 98)
    walk(c);
  else
    usleep((unsigned)pick(&c->d, 1000));
}

static int may_have_failed(const client *c, const asked *a) {
  return a->deadline > 0 || a->s->fails || a->s->changes || a->s->d.on_full == MPISERVE_REJECT ||
         a->s->suspends_at >= 0 || c->w->failing >= 0;
}

/* What was in flight has ended: answered in full, or with a code that nobody asked for. A head
 * that fails a batch may have written to rows of buffers before. */
static void look_at_the_end(client *c) {
  for (int i = 0; i < MAX_ASKED; i++) {
    asked *a = &c->asked[i];
    int failed = a->state == ALIVE && may_have_failed(c, a);
    failed = failed && (a->out_buffer || is_cut(a) || untouched(a));
    if (a->state == OVER) check_over(a);
    if (a->state == ALIVE && !failed) check_answer(a, 0);
    if (a->state != FREE) forget(a);
  }
}

static void fail_now(client *c) {
  doing("fail");
  must(mpiserve_fail(c->session, "fuzz: it ended"), "fail");
  for (int i = 0; i < MAX_ASKED; i++)
    if (c->asked[i].state == ALIVE) give_up(&c->asked[i]);
}

static void keep_buffers(client *c) {
  for (int i = 0; i < MAX_TAKEN; i++)
    if (c->taken[i].used && n_kept < (int)(sizeof kept / sizeof *kept))
      kept[n_kept++] = c->taken[i].b.inputs[0];
}

static void leave(client *c) {
  if (!c->w->leaves_in_flight) wait_for_all(c);
  if (c->w->failing == c->w->index[me.rank]) fail_now(c);
  keep_buffers(c);
  doing("close");
  must(mpiserve_close(c->session), "close");
  look_at_the_end(c);
}

static int has_ended(const client *c, const service *s) {
  mpiserve_replica_state state;
  for (int i = 0; i < s->able + (s->broken >= 0); i++) {
    must(mpiserve_service_state_get(c->session, s->d.name, i, &state), "service_state_get");
    if (state.state != MPISERVE_GONE && state.state != MPISERVE_FAILED) return 0;
  }
  return 1;
}

/* A guest must leave within 5 s when all others have left. */
static int goes_on_asking(const client *c) {
  if (c->w->roles[me.rank] == MPISERVE_SIMULATION) return 1;
  for (int i = 0; i < c->w->n; i++)
    if (!has_ended(c, &c->w->services[i])) return 1;
  return 0;
}

static void simulate(const world *w, mpiserve_session *session) {
  static client c;
  c = (client){.w = w, .session = session, .d = {mix(me.seed) + (uint64_t)me.rank + 1}};
  for (int i = 0; i < w->n; i++) {
    c.least[i] = 1;
    const service *s = &w->services[i];
    must(mpiserve_service_find(session, s->d.name, &c.services[i]), "service_find");
    if (s->falls & TO_FUNCTION)
      must(mpiserve_fallback_set(c.services[i], answer_instead, (void *)s), "fallback_set");
  }
  int fails = w->failing == w->index[me.rank];
  for (int i = 0; i < w->operations / (1 + fails) && goes_on_asking(&c); i++) work(&c);
  leave(&c);
}

#endif
