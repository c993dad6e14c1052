/* error: one table of codes and texts, and this thread's last message. No MPI calls. */
#ifndef MSI_ERROR_H
#define MSI_ERROR_H

#include "mpiserve.h"

enum { MSI_MESSAGE_SIZE = 2 * MPISERVE_TEXT_SIZE }; /* of this thread's last message */

/* Records the details of a failure and returns code, so that callers can write
 * return msi_error(MPISERVE_EARG, "rows is %d", rows). */
int msi_error(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What went wrong in several steps that are all taken, whatever comes of one: the code of the first
 * failure, and the texts of all, each of them once. */
typedef struct msi_outcome {
  int code;
  char text[MSI_MESSAGE_SIZE];
} msi_outcome;

/* Adds the code of a step that has just been taken. */
void msi_outcome_add(msi_outcome *outcome, int code);

/* Returns the code, with its texts as this thread's last message. */
int msi_outcome_end(const msi_outcome *outcome);

/* Appends to a text in memory of so many bytes, as far as there is room. */
void msi_text_append(char *text, size_t bytes, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Bytes of a text, at most so many: where it is cut, between two characters of UTF-8. */
size_t msi_text_bytes(const char *text, size_t most);

#endif
