#include "client/balance.h"

#include <float.h>

static const double DEFAULT_STICKINESS = 0.25;

/* The weight of a new measurement: a few requests are enough to learn, one is not. */
static const double FRESH = 0.25;

/* The client tries a replica that it does not use after so many requests for each other replica;
 * later if it is slow, so that trying takes 1/64 of the time. */
static const double TRY_UNKNOWN = 8, TRY_KNOWN = 64;

/* After so long without a request, what is known of a replica is of little worth. */
static const double STALE = 16;

/* A replica that seems to be slower than this is tried as if it were only so slow: one measurement
 * may be wrong, because something else ran. */
static const double SLOWEST = 16;

void msi_balance_init(msi_balance *balance, msi_load *loads, int n, int home, double stickiness,
                      int client) {
  double leave = 1 - (stickiness > 0 ? stickiness : DEFAULT_STICKINESS);
  *balance = (msi_balance){.loads = loads, .n = n, .home = home, .leave = leave > 0 ? leave : 0};
  /* Multiples of the golden ratio spread over [0, 1) evenly, however many there are. */
  double turn = 0.6180339887498949 * client;
  turn -= (double)(int64_t)turn;
  for (int i = 0; i < n; i++)
    loads[i] = (msi_load){.unseen = turn * TRY_UNKNOWN * (n - 1), .stale = 1};
}

static double fastest(const msi_balance *balance) {
  double least = 0;
  for (int i = 0; i < balance->n; i++) {
    const msi_load *load = &balance->loads[i];
    if (load->row_ns > 0 && (least <= 0 || load->row_ns < least)) least = load->row_ns;
  }
  return least > 0 ? least : 1;
}

/* A replica that has not answered yet counts as fast as the fastest, and as crowded as home,
 * because homes are spread over the clients evenly. */
static double expected(const msi_balance *balance, int i, double least, int64_t rows) {
  const msi_load *load = &balance->loads[i];
  double row_ns = load->row_ns > 0 ? load->row_ns : least;
  double others = balance->loads[load->known ? i : balance->home].others_rows;
  return row_ns * ((double)(load->rows + rows) + others);
}

/* The replica that should be tried most, or -1. Not while an answer is on its way. */
static int overdue(const msi_balance *balance) {
  double most = 1;
  int found = -1;
  for (int i = 0; i < balance->n; i++) {
    const msi_load *load = &balance->loads[i];
    double every = load->known && !load->suspended ? TRY_KNOWN : TRY_UNKNOWN;
    double due = load->unseen / (every * (balance->n - 1));
    if (load->rows || load->dead || due < most) continue;
    most = due;
    found = i;
  }
  return found;
}

/* The replica that answers first, of those that are not suspended; -1: all are. */
static int soonest(const msi_balance *balance, int64_t rows) {
  double least = fastest(balance), best = DBL_MAX;
  int chosen = -1;
  for (int i = 0; i < balance->n; i++) {
    double time = expected(balance, i, least, rows);
    if (i == balance->home) time *= balance->leave;
    if (balance->loads[i].suspended || time > best || (time == best && i != balance->home))
      continue;
    best = time;
    chosen = i;
  }
  return chosen;
}

/* Suspended replicas are tried in turn. */
static int longest_unseen(const msi_balance *balance, int except) {
  int chosen = -1;
  for (int i = 0; i < balance->n; i++)
    if (i != except && !balance->loads[i].dead &&
        (chosen < 0 || balance->loads[i].unseen > balance->loads[chosen].unseen))
      chosen = i;
  return chosen;
}

int msi_balance_choose(const msi_balance *balance, int64_t rows) {
  int home = balance->home;
  if (balance->n < 2 || (balance->leave <= 0 && !balance->loads[home].suspended)) return home;
  int chosen = overdue(balance);
  if (chosen < 0) chosen = soonest(balance, rows);
  if (chosen < 0) chosen = longest_unseen(balance, -1);
  return chosen < 0 ? home : chosen;
}

int msi_balance_another(const msi_balance *balance, int i, int64_t rows) {
  int chosen = soonest(balance, rows);
  return chosen < 0 || chosen == i ? longest_unseen(balance, i) : chosen;
}

void msi_balance_lose(msi_balance *balance, int i) {
  balance->loads[i].dead = balance->loads[i].suspended = 1;
  int next = longest_unseen(balance, i);
  if (balance->home == i && next >= 0) balance->home = next;
}

static double between(double low, double value, double high) {
  return value < low ? low : value > high ? high : value;
}

void msi_balance_sent(msi_balance *balance, int i, int64_t rows) {
  double least = fastest(balance), time = expected(balance, i, least, rows);
  for (int j = 0; j < balance->n; j++)
    balance->loads[j].unseen += between(1 / SLOWEST, time / expected(balance, j, least, rows), 1);
  msi_load *load = &balance->loads[i];
  load->stale |= load->unseen > STALE;
  load->unseen = 0;
  load->rows += rows;
}

void msi_balance_measure(msi_load *load, int64_t own_rows, int64_t batch_rows, int64_t waiting,
                         int64_t compute_ns) {
  if (batch_rows < own_rows || own_rows < 1) return;
  double weight = load->stale ? 1 : FRESH;
  double row_ns = (double)compute_ns / (double)batch_rows;
  load->row_ns += weight * (row_ns - load->row_ns);
  load->others_rows += weight * ((double)(batch_rows - own_rows + waiting) - load->others_rows);
  load->known = 1;
  load->stale = 0;
  load->suspended = load->dead; /* it may have answered before it died */
}
