/* fuzz_head: an inference rank of the random program. It looks at each row that reaches its
 * model, and answers in all ways there are. */
#ifndef FUZZ_HEAD_H
#define FUZZ_HEAD_H

#include <unistd.h>

#include "fuzz_ragged.h"
#include "fuzz_record.h"

/* ---- batches ---------------------------------------------------------------------------- */

/* The first rows, in some pieces, to memory of our own or where the batch has its own. */
static void reply(head *h, const model *m, const mpiserve_batch *batch) {
  void *own[MAX_SIDE], *const *outputs = batch->outputs;
  int64_t done = 0;
  own_outputs(&m->s->out, batch->rows, own);
  tell_shape(h, m);
  if (chance(&h->d, 40)) outputs = own;
  while (chance(&h->d, 30) && done < batch->rows) {
    int64_t more = done + log_pick(&h->d, (int)(batch->rows - done));
    compute(m, batch, done, more, outputs);
    must(mpiserve_batch_reply_rows(h->session, more, (const void *const *)outputs), "reply_rows");
    done = more;
  }
  if (done && chance(&h->d, m->s->fails)) {
    must(fail(h), "batch_fail");
  } else if (outputs == own && h->n_held + batch->requests <= MAX_HELD &&
             chance(&h->d, m->s->holds / 4)) {
    hold(h, m, batch);
  } else {
    compute(m, batch, done, batch->rows, outputs);
    must(mpiserve_batch_reply(h->session, (const void *const *)outputs), "batch_reply");
  }
  free_outputs(&m->s->out, own);
}

static void answer(head *h, const mpiserve_batch *batch) {
  const model *m = &h->models[batch->service];
  model own;
  service s;
  if (m->s->d.rows == MPISERVE_RAGGED) {
    answer_ragged(h, m, batch);
    return;
  }
  m = sized(m, sizes_of(h, m, batch), &own, &s);
  doing("answer a batch of '%s': %lld rows, %d requests", m->s->d.name, (long long)batch->rows,
        batch->requests);
  look_at_batch(h, m, batch);
  if (chance(&h->d, h->w->slow)) usleep((unsigned)pick(&h->d, h->w->slow_us));
  if (m->unloaded)
    must(mpiserve_batch_fail(h->session, MPISERVE_EMODEL, "fuzz: unloaded"), "batch_fail");
  else if (chance(&h->d, m->s->fails))
    must(fail(h), "batch_fail");
  else if (h->n_held + batch->requests <= MAX_HELD && chance(&h->d, m->s->holds))
    hold(h, m, batch);
  else
    reply(h, m, batch);
}

/* ---- engines ---------------------------------------------------------------------------- */

static int run_engine(void *state, int64_t rows, const void *const *inputs, void *const *outputs,
                      char *text, size_t bytes) {
  const model *m = state;
  mpiserve_batch batch = {0};
  if (chance(m->d, m->s->fails)) return snprintf(text, bytes, "fuzz: an engine");
  memcpy(batch.inputs, inputs, (size_t)m->s->in.n * sizeof *inputs);
  compute(m, &batch, 0, rows, outputs);
  return 0;
}

/* The library answers with an engine, or this rank does. */
static void choose_engine(head *h, int number) {
  model *m = &h->models[number];
  mpiserve_engine own = {m, run_engine, NULL, log_pick(&h->d, MAX_ROWS), chance(&h->d, 50), 0};
  own.in_segment = !own.by_request && chance(&h->d, 30);
  const mpiserve_engine *engine = m->echo.run && chance(&h->d, 50) ? &m->echo : &own;
  if (m->unloaded || m->s->free || chance(&h->d, 50)) engine = NULL;
  doing("engine of '%s': %s", m->s->d.name, engine ? engine == &own ? "own" : "echo" : "none");
  must(mpiserve_engine_set(h->session, number, engine), "engine_set");
}

/* ---- other models ----------------------------------------------------------------------- */

static void take_change(head *h) {
  mpiserve_change_request change;
  must(mpiserve_change_get(h->session, &change), "change_get");
  if (change.service < 0 || change.service >= h->n || change.what < MPISERVE_LOAD ||
      change.what > MPISERVE_UNLOAD || h->w->index[change.client] != 0)
    wrong("a change %d for service %d by rank %d", change.what, change.service, change.client);
  if (change.what == MPISERVE_LOAD && strcmp(change.version, "fuzz"))
    wrong("a change to version '%s'", change.version);
  if (h->models[change.service].asked) wrong("a change began before the one before it ended");
  h->models[change.service].asked = change.what;
}

static int change(head *h, model *m, int what) {
  if (what == MPISERVE_LOAD) {
    if (chance(&h->d, 20)) return MPISERVE_EMODEL;
    m->loaded = 1;
  } else if (what == MPISERVE_SWAP) {
    if (!m->loaded) return MPISERVE_ESTATE;
    m->loaded = m->unloaded = 0;
    m->generation++;
  } else if (what == MPISERVE_DROP) {
    m->loaded = 0;
  } else {
    m->unloaded = 1;
  }
  return MPISERVE_OK;
}

/* What is held ends with the model that it began with. */
static void obey(head *h, int number) {
  model *m = &h->models[number];
  int what = m->asked;
  doing("change %d for '%s'", what, m->s->d.name);
  if (what == MPISERVE_SWAP || what == MPISERVE_UNLOAD) end_some_held(h, 100, number);
  int code = change(h, m, what);
  m->asked = 0;
  must(mpiserve_change_reply(h->session, number, code, code ? "fuzz: a change" : NULL),
       "change_reply");
  if (what == MPISERVE_UNLOAD) choose_engine(h, number);
}

/* ---- suspend ---------------------------------------------------------------------------- */

static void rest_or_not(head *h, int number) {
  model *m = &h->models[number];
  int64_t rows = -1;
  if (m->s->suspends_at != h->w->index[me.rank] || !chance(&h->d, 10)) return;
  m->suspended = !m->suspended;
  doing("'%s' suspended: %d", m->s->d.name, m->suspended);
  must(mpiserve_suspend(h->session, number, m->suspended), "suspend");
  must(mpiserve_queue_get(h->session, number, &rows), "queue_get");
  if (rows < 0 || (m->suspended && rows)) wrong("%lld rows wait where nobody may", (long long)rows);
}

/* ---- the life of a head ----------------------------------------------------------------- */

static int waits_for_us(const head *h) {
  int asked = h->n_held > 0;
  for (int i = 0; i < h->n; i++) asked |= h->models[i].asked;
  return asked;
}

static void between_batches(head *h) {
  end_some_held(h, h->w->backoff, -1);
  for (int i = 0; i < h->n; i++) {
    if (h->models[i].asked && chance(&h->d, 30)) obey(h, i);
    rest_or_not(h, i);
    if (chance(&h->d, 10)) choose_engine(h, i);
  }
  if (chance(&h->d, 5)) must(mpiserve_poll(h->session), "poll");
}

static int next(head *h, mpiserve_batch *batch) {
  double timeout = waits_for_us(h) ? ANY_OF(&h->d, 0, 5e-4) : ANY_OF(&h->d, 0, 5e-4, 1e-2, 0.2);
  doing("batch_next, %g s", timeout);
  return mpiserve_batch_next(h->session, timeout, batch);
}

static int step(head *h) {
  mpiserve_batch batch;
  drain(h);
  between_batches(h);
  int code = next(h, &batch);
  int failed = code == MPISERVE_EMODEL && strstr(mpiserve_last_error(), "fuzz: an engine");
  if (!code || failed) answer(h, &batch);
  if (failed) return MPISERVE_OK;
  if (code == MPISERVE_ECHANGE) take_change(h);
  if (code == MPISERVE_ETIMEOUT || code == MPISERVE_ECHANGE) return MPISERVE_OK;
  return code;
}

static void publish(head *h) {
  mpiserve_description all[MAX_SERVICES];
  int at = h->w->index[me.rank];
  for (int i = 0; i < h->w->n; i++) {
    const service *s = &h->w->services[i];
    if (!s->on[at]) continue;
    all[h->n] = s->d;
    all[h->n].replica = at && s->on[0];
    if (s->broken == at) all[h->n].error = MPISERVE_EMODEL;
    model *m = &h->models[h->n++];
    *m = (model){.s = s, .generation = 1, .d = &h->d};
    if (s->echo) must(mpiserve_engine_load(NULL, NULL, &s->d, &m->echo), "engine_load");
  }
  must(mpiserve_publish(h->session, h->n, all), "publish");
}

static void check_counters(const head *h) {
  mpiserve_counters c;
  must(mpiserve_counters_get(h->session, &c), "counters_get");
  if (c.rma_to_simulation) wrong("%lld operations at a client", (long long)c.rma_to_simulation);
  if (c.batches != c.closed_by_rows + c.closed_by_census + c.closed_by_delay && !c.batches)
    wrong("batches are closed for no reason");
}

/* Those that a client's failure has ended. */
static void forget_held(head *h) {
  for (int wanted; h->n_held; free(h->held[--h->n_held].rows)) {
    must(mpiserve_ticket_wanted(h->session, &h->held[h->n_held - 1].ticket, &wanted),
         "ticket_wanted");
    if (wanted) wrong("every client has left, but a request is held");
  }
}

static void serve(const world *w, mpiserve_session *session) {
  static head h;
  h = (head){.w = w, .session = session, .d = {mix(me.seed) + (uint64_t)me.rank + 1}};
  int code = MPISERVE_OK;
  publish(&h);
  if (w->captured) capture(&h);
  while (!code) code = step(&h);
  if (code != MPISERVE_ECLOSED) must(code, "batch_next");
  forget_held(&h);
  check_counters(&h);
  doing("close");
  must(mpiserve_close(session), "close");
  end_capture(&h);
  for (int i = 0; i < h.n; i++) mpiserve_engine_close(&h.models[i].echo);
}

#endif
