/* check: what a C test needs. CHECK goes on after a failure, so that one run
 * shows them all; main returns check_result(). */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <string.h>

static int check_failures;

#define CHECK(condition) \
  do { \
    if (!(condition)) { \
      printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      check_failures++; \
    } \
  } while (0)

/* Is part in the text? Prints both if not. */
#define CHECK_TEXT(text, part) \
  do { \
    if (!strstr((text), (part))) { \
      printf("%s:%d: failed: '%s' is not in '%s'\n", __FILE__, __LINE__, (part), (text)); \
      check_failures++; \
    } \
  } while (0)

static inline int check_result(void) { return check_failures ? 1 : 0; }

#endif
