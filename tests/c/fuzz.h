/* fuzz: what the parts of the random program share: dice, a world that all ranks make of one
 * seed, and rows that tell who made them. */
#ifndef FUZZ_H
#define FUZZ_H

#include <mpi.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mpiserve.h"

enum { MAX_RANKS = 8, MAX_HEADS = 2, MAX_SERVICES = 3, MAX_SIDE = 3, MAX_ROWS = 200 };
enum { BATCH_BYTES = 256 << 10, ELEMENTS = 512, WIDEST = 16 /* bytes of a complex128 */ };
enum { MAX_ROW_BYTES = MAX_SIDE * ELEMENTS * WIDEST };
enum { AGAIN = 60 }; /* rows of a client that a service gets which keeps answers */

/* ---- dice ------------------------------------------------------------------------------- */

typedef struct dice {
  uint64_t state;
} dice;

static inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static inline uint64_t roll(dice *d) { return mix(d->state += 0x9e3779b97f4a7c15u); }
static inline int pick(dice *d, int n) { return (int)(roll(d) % (uint64_t)n); }
static inline int chance(dice *d, int percent) { return pick(d, 100) < percent; }

#define ANY_OF(d, ...) \
  (((const double[]){__VA_ARGS__})[pick((d), sizeof((double[]){__VA_ARGS__}) / sizeof(double))])

/* 1 to most; small numbers are as likely as large ones. */
static inline int log_pick(dice *d, int most) {
  int limit = 1;
  for (int i = pick(d, 16); i > 0 && limit < most; i--) limit *= 2;
  return 1 + pick(d, limit < most ? limit : most);
}

/* ---- what this rank does ---------------------------------------------------------------- */

static struct {
  uint64_t seed;
  int rank, ranks, wrong, trace;
  char doing[240]; /* for the watchdog */
} me;

/* Says what comes next, which is what a rank that hangs was at. */
__attribute__((format(printf, 1, 2))) static inline void doing(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(me.doing, sizeof me.doing, format, arguments);
  va_end(arguments);
  if (!me.trace) return;
  printf("seed %llu rank %d: %s\n", (unsigned long long)me.seed, me.rank, me.doing);
  fflush(stdout);
}

__attribute__((format(printf, 1, 2))) static inline void wrong(const char *format, ...) {
  enum { SHOWN = 10 };
  va_list arguments;
  if (me.wrong++ >= SHOWN) return;
  va_start(arguments, format);
  printf("WRONG: seed %llu rank %d: ", (unsigned long long)me.seed, me.rank);
  vprintf(format, arguments);
  printf("\n  at: %s\n", me.doing);
  va_end(arguments);
  fflush(stdout);
}

static inline void must(int code, const char *what) {
  if (code) wrong("%s: %d, %s", what, code, mpiserve_last_error());
}

/* ---- rows ------------------------------------------------------------------------------- */

enum {
  UNWRITTEN = 0xCC, /* outputs before the answer */
  NOBODYS = 0xDD,   /* rows of a buffer that were never submitted */
  ENDED = 0xEE      /* outputs of a request that has ended without an answer */
};
enum { KEY = 8, TELLING = 12 }; /* rows of so many bytes tell who made them */

static inline uint8_t plain(uint64_t x) {
  uint8_t byte = (uint8_t)(x >> 40);
  return byte == NOBODYS ? 0 : byte;
}

/* All bytes follow from the first ones, so that a head can tell a row that is torn, or mixed
 * of two, or that nobody submitted. */
static inline void row_rest(uint8_t *row, size_t bytes) {
  uint64_t key;
  memcpy(&key, row, KEY);
  dice d = {key};
  for (size_t i = KEY; i < bytes; i++) row[i] = plain(roll(&d));
}

static inline void row_make(uint8_t *row, size_t bytes, int client, uint64_t number) {
  uint8_t key[KEY] = {(uint8_t)(client + 1)};
  for (int i = 1; i < KEY; i++) key[i] = plain(mix(number * KEY + (uint64_t)(i + 64 * client)));
  if (bytes >= TELLING) {
    memcpy(row, key, KEY);
    row_rest(row, bytes);
  } else {
    for (size_t i = 0; i < bytes; i++) row[i] = key[1 + i % (KEY - 1)];
  }
}

/* Was it made by this client? */
static inline int row_right(const uint8_t *row, size_t bytes, int client) {
  uint8_t again[MAX_ROW_BYTES];
  if (bytes < TELLING) return 1;
  memcpy(again, row, KEY);
  row_rest(again, bytes);
  return row[0] == client + 1 && !memcmp(again, row, bytes);
}

#endif
