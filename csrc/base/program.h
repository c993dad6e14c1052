/* program: another program that this process starts and shares files with. It is told when this
 * process ends, and is ended with it. No MPI calls. */
#ifndef MSI_PROGRAM_H
#define MSI_PROGRAM_H

#include <stdint.h>

/* The number of the first file in the program; the others follow, and then the end of a pipe that
 * closes when this process ends the program or ends itself. */
enum { MSI_PROGRAM_FIRST_FILE = 3, MSI_PROGRAM_MOST_FILES = 4 };

/* Zero-initialise. */
typedef struct msi_program {
  int pid; /* 0: none */
  int pidfd;
  int lifeline;
} msi_program;

/* Starts a program by its path. argv[0] is the path, and NULL the last word. An error of the
 * caller's code with a text if it cannot be started. */
int msi_program_start(msi_program *program, int code, char *const *argv, const int *files,
                      int n_files);

/* Ends it: by the pipe, and after so many nanoseconds by SIGKILL. Safe if there is none. */
void msi_program_end(msi_program *program, int64_t ns);

#endif
