#include "client/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/call.h"
#include "client/fallback.h"

/* In the lower half of the id of a request that was cut. No call has such an index. */
#define CUT UINT32_C(0x80000000)

enum { MOST_PIECES = 1 << 16 };

/* A request that was cut. Its pieces are waited for in their order. */
struct msi_cut {
  uint32_t index, generation; /* its id is generation << 32 | CUT | index + 1 */
  mpiserve_service *service;  /* NULL: free */
  uint32_t n, ended;          /* pieces, and those of them that have ended */
  mpiserve_request *pieces;
  int64_t rows, submitted_ns;
  mpiserve_stats stats;
};

/* ---- requests that were cut ------------------------------------------------------ */

static int is_cut(const mpiserve_request *request) { return ((uint32_t)request->id & CUT) != 0; }

static msi_cut *find(const msi_client *client, const mpiserve_request *request) {
  uint32_t index = ((uint32_t)request->id & ~CUT) - 1;
  msi_cut *cut = index < client->n_cuts ? client->cuts[index] : NULL;
  if (cut && cut->service && cut->generation == (uint32_t)(request->id >> 32)) return cut;
  msi_error(MPISERVE_ESTATE, "no such request: it has ended, or never was");
  return NULL;
}

static msi_cut *add(msi_client *client) {
  msi_cut **cuts = realloc(client->cuts, (client->n_cuts + 1) * sizeof(msi_cut *));
  if (!cuts) return NULL;
  client->cuts = cuts;
  msi_cut *cut = calloc(1, sizeof *cut);
  if (!cut) return NULL;
  cut->index = client->n_cuts;
  cut->generation = client->first_generation;
  return client->cuts[client->n_cuts++] = cut;
}

/* A free one, with room for n pieces; NULL: no memory. */
static msi_cut *take(msi_client *client, uint32_t n) {
  msi_cut *cut = NULL;
  for (uint32_t i = 0; i < client->n_cuts && !cut; i++)
    if (!client->cuts[i]->service) cut = client->cuts[i];
  if (!cut) cut = add(client);
  if (!cut) return NULL;
  cut->pieces = calloc(n, sizeof *cut->pieces);
  cut->n = cut->ended = 0;
  cut->stats = (mpiserve_stats){0};
  return cut->pieces ? cut : NULL;
}

static void give(msi_cut *cut) {
  free(cut->pieces);
  cut->pieces = NULL;
  cut->service = NULL;
  cut->generation++;
}

void msi_request_free(msi_client *client) {
  for (uint32_t i = 0; i < client->n_cuts; i++) {
    free(client->cuts[i]->pieces);
    free(client->cuts[i]);
  }
  free(client->cuts);
}

/* Its pieces that have not ended end without a result. This thread's last error stays. */
static void end_pieces(msi_client *client, msi_cut *cut) {
  char text[2 * MPISERVE_TEXT_SIZE];
  snprintf(text, sizeof text, "%s", mpiserve_last_error());
  for (; cut->ended < cut->n; cut->ended++)
    if (cut->pieces[cut->ended].id) msi_call_cancel(client, &cut->pieces[cut->ended]);
  msi_error(MPISERVE_OK, "%s", text);
}

static int end(msi_client *client, msi_cut *cut, mpiserve_request *request, int code,
               mpiserve_stats *stats) {
  end_pieces(client, cut);
  if (code) cut->stats = (mpiserve_stats){.rows = cut->rows};
  cut->stats.total_ns = msi_now() - cut->submitted_ns;
  if (stats && code != MPISERVE_ETIMEOUT) *stats = cut->stats;
  *request = (mpiserve_request){0};
  give(cut);
  return code;
}

/* ---- submit ------------------------------------------------------------------------ */

static int too_many(const mpiserve_service *service, int64_t rows, const char *why) {
  return msi_error(MPISERVE_EROWS,
                   "service '%s': %lld rows, the limit is max_batch_rows = %lld, and the request "
                   "cannot be cut: %s; send it in pieces, or raise max_batch_rows",
                   service->name, (long long)rows, (long long)service->endpoint->layout.max_rows,
                   why);
}

/* Would results of one piece be written over inputs of another one? */
static int mixes(const msi_layout *layout, int64_t rows, void *const *inputs,
                 void *const *outputs) {
  for (int i = 0; i < layout->inputs.n; i++)
    for (int j = 0; j < layout->outputs.n; j++) {
      size_t read = layout->inputs.row_bytes[i], written = layout->outputs.row_bytes[j];
      uintptr_t in = (uintptr_t)inputs[i], out = (uintptr_t)outputs[j];
      int overlap = in < out + (size_t)rows * written && out < in + (size_t)rows * read;
      if (overlap && (in != out || read != written)) return 1;
    }
  return 0;
}

static int check(const mpiserve_service *service, int64_t rows, void *const *inputs,
                 void *const *outputs) {
  const msi_layout *layout = &service->endpoint->layout;
  if (service->head->description.rows != MPISERVE_INDEPENDENT)
    return too_many(service, rows, "its rows belong together");
  if (msi_layout_is_free(layout))
    return too_many(service, rows, "its tensors have free dimensions");
  if ((rows - 1) / layout->max_rows >= MOST_PIECES)
    return too_many(service, rows, "it would have over 65536 pieces");
  if (mixes(layout, rows, inputs, outputs))
    return too_many(service, rows, "an output overlaps an input");
  return MPISERVE_OK;
}

static void move(const msi_side *side, int64_t row, void *const *from, void **to) {
  for (int i = 0; i < side->n; i++) to[i] = (char *)from[i] + (size_t)row * side->row_bytes[i];
}

static int submit_pieces(msi_cut *cut, int64_t rows, void *const *inputs, void *const *outputs,
                         const mpiserve_options *options) {
  const msi_layout *layout = &cut->service->endpoint->layout;
  void *in[MPISERVE_MAX_TENSORS], *out[MPISERVE_MAX_TENSORS];
  int code = MPISERVE_OK;
  for (int64_t row = 0; row < rows && !code; row += layout->max_rows) {
    int64_t left = rows - row, n = left < layout->max_rows ? left : layout->max_rows;
    move(&layout->inputs, row, inputs, in);
    move(&layout->outputs, row, outputs, out);
    int how = CALL_TIMED | (n < left ? CALL_IS_PIECE : CALL_IS_LAST_PIECE);
    code = msi_call_submit(cut->service, n, in, out, options, how, &cut->pieces[cut->n]);
    cut->n += !code;
  }
  return code;
}

int msi_request_submit(mpiserve_service *service, int64_t rows, void *const *inputs,
                       void *const *outputs, const mpiserve_options *options, int how,
                       mpiserve_request *request) {
  int64_t most = service->endpoint->layout.max_rows;
  if (rows <= most) return msi_call_submit(service, rows, inputs, outputs, options, how, request);
  int code = check(service, rows, inputs, outputs);
  if (code) return code;
  msi_client *client = service->client;
  msi_cut *cut = take(client, (uint32_t)((rows - 1) / most + 1));
  if (!cut) return msi_error(MPISERVE_ENOMEM, "no memory for the pieces of a request");
  cut->service = service;
  cut->rows = rows;
  cut->submitted_ns = msi_now();
  *request = (mpiserve_request){(uint64_t)cut->generation << 32 | CUT | (cut->index + 1)};
  code = submit_pieces(cut, rows, inputs, outputs, options);
  return code ? end(client, cut, request, code, NULL) : MPISERVE_OK;
}

/* ---- wait, give up, cancel ------------------------------------------------------------- */

/* Of the last piece, but for what the pieces have in common. */
static void add_stats(mpiserve_stats *all, const mpiserve_stats *piece) {
  const mpiserve_stats before = *all;
  *all = *piece;
  all->rows += before.rows;
  all->fallback_rows += before.fallback_rows;
  all->local_rows += before.local_rows;
  all->source = msi_fallback_source(all);
}

static double left(double timeout, int64_t deadline) {
  if (timeout == 0 || deadline == INT64_MAX) return timeout;
  int64_t now = msi_now();
  return now < deadline ? (double)(deadline - now) * 1e-9 : 0;
}

static int not_ended(const msi_cut *cut, double timeout) {
  return msi_error(MPISERVE_ETIMEOUT,
                   "service '%s': %u of the %u pieces of a request have no reply after %g s",
                   cut->service->name, cut->n - cut->ended, cut->n, timeout);
}

/* *over: the request has ended, with the code that is returned. */
static int wait_for_pieces(msi_client *client, msi_cut *cut, double timeout, int *over) {
  int64_t deadline = msi_deadline(timeout);
  for (*over = 0; cut->ended < cut->n; cut->ended++) {
    mpiserve_stats stats = {0};
    mpiserve_request *piece = &cut->pieces[cut->ended];
    int code = msi_call_wait(client, piece, left(timeout, deadline), &stats);
    if (piece->id) return code == MPISERVE_ETIMEOUT ? not_ended(cut, timeout) : code;
    add_stats(&cut->stats, &stats);
    *over = code != MPISERVE_OK;
    if (*over) return code;
  }
  *over = 1;
  return MPISERVE_OK;
}

int msi_request_wait(msi_client *client, mpiserve_request *request, double timeout,
                     mpiserve_stats *stats) {
  if (!is_cut(request)) return msi_call_wait(client, request, timeout, stats);
  msi_cut *cut = find(client, request);
  if (!cut) return MPISERVE_ESTATE;
  int over, code = wait_for_pieces(client, cut, timeout, &over);
  return over ? end(client, cut, request, code, stats) : code;
}

/* Each piece that has not ended goes to the fallback, with the same code and text. */
static int give_up_pieces(msi_client *client, msi_cut *cut, int code) {
  char text[2 * MPISERVE_TEXT_SIZE];
  snprintf(text, sizeof text, "%s", mpiserve_last_error());
  int result = MPISERVE_OK;
  for (; cut->ended < cut->n && !result; cut->ended++) {
    mpiserve_stats stats = {0};
    msi_error(code, "%s", text);
    result = msi_call_give_up(client, &cut->pieces[cut->ended], code, &stats);
    add_stats(&cut->stats, &stats);
  }
  return result;
}

int msi_request_give_up(msi_client *client, mpiserve_request *request, int code,
                        mpiserve_stats *stats) {
  if (!is_cut(request)) return msi_call_give_up(client, request, code, stats);
  msi_cut *cut = find(client, request);
  if (!cut) return code;
  return end(client, cut, request, give_up_pieces(client, cut, code), stats);
}

int msi_request_cancel(msi_client *client, mpiserve_request *request) {
  if (!is_cut(request)) return msi_call_cancel(client, request);
  msi_cut *cut = find(client, request);
  return cut ? end(client, cut, request, MPISERVE_OK, NULL) : MPISERVE_ESTATE;
}
