#define _GNU_SOURCE
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CODES(X) \
  X(MPISERVE_OK, "success") \
  X(MPISERVE_EARG, "invalid argument") \
  X(MPISERVE_ESTATE, "call does not fit the state of the session") \
  X(MPISERVE_EMPI, "MPI error") \
  X(MPISERVE_ENOMEM, "out of memory") \
  X(MPISERVE_ETHREAD, "MPI thread levels of the ranks do not fit together") \
  X(MPISERVE_EVERSION, "versions do not fit together") \
  X(MPISERVE_ECONFIG, "invalid configuration") \
  X(MPISERVE_ENOTFOUND, "no such service") \
  X(MPISERVE_ENAME, "no such tensor in the signature") \
  X(MPISERVE_EDTYPE, "dtype differs from the signature") \
  X(MPISERVE_ESHAPE, "shape differs from the signature") \
  X(MPISERVE_EROWS, "invalid number of rows") \
  X(MPISERVE_EMODEL, "the model failed") \
  X(MPISERVE_ETIMEOUT, "timed out") \
  X(MPISERVE_ECANCELLED, "request cancelled") \
  X(MPISERVE_EPEER, "another rank ended with an error") \
  X(MPISERVE_ECLOSED, "session closed") \
  X(MPISERVE_EFULL, "the queue is full") \
  X(MPISERVE_EDEADLINE, "the deadline passed") \
  X(MPISERVE_ECHANGE, "a client asks for another model")

static _Thread_local char last_message[MSI_MESSAGE_SIZE];

size_t msi_text_bytes(const char *text, size_t most) {
  size_t bytes = strnlen(text, most + 1);
  if (bytes <= most) return bytes;
  for (bytes = most; bytes && ((unsigned char)text[bytes] & 0xc0) == 0x80;) bytes--;
  return bytes;
}

void msi_text_append(char *text, size_t bytes, const char *format, ...) {
  size_t n = strlen(text);
  va_list args;
  va_start(args, format);
  vsnprintf(text + n, bytes - n, format, args);
  va_end(args);
}

int msi_error(int code, const char *format, ...) {
  char text[sizeof last_message + 1];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args); /* may print what was the last one */
  va_end(args);
  size_t bytes = msi_text_bytes(text, sizeof last_message - 1);
  memcpy(last_message, text, bytes);
  last_message[bytes] = 0;
  return code;
}

void msi_outcome_add(msi_outcome *outcome, int code) {
  if (!code) return;
  if (!outcome->code) outcome->code = code;
  if (strstr(outcome->text, last_message)) return; /* it is said already */
  msi_text_append(outcome->text, sizeof outcome->text, outcome->text[0] ? ". And %s" : "%s",
                  last_message);
}

int msi_outcome_end(const msi_outcome *outcome) {
  return outcome->code ? msi_error(outcome->code, "%s", outcome->text) : MPISERVE_OK;
}

const char *mpiserve_last_error(void) { return last_message; }

int mpiserve_error(int code, const char *text) {
  if (!text) text = mpiserve_strerror(code);
  return msi_error(code, "%s", text);
}

const char *mpiserve_strerror(int code) {
  switch (code) {
#define CASE(name, text) \
  case name: return text;
    CODES(CASE)
#undef CASE
  }
  return "unknown code";
}
