#define _GNU_SOURCE
#include "base/profile_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

static const char FILE_NAME[] = "mpiserve-profile.json", ENDING[] = ".json";

const char *msi_profile_file(void) {
  const char *file = getenv("MPISERVE_PROFILE_FILE");
  return file && *file ? file : FILE_NAME;
}

/* The folder of the parts is named as the file of the report. A name that is too long is cut, and
 * its folder is not there. */
void msi_profile_name(int rank, const char *kind, char name[MPISERVE_TEXT_SIZE]) {
  enum { ENOUGH = MPISERVE_TEXT_SIZE - 64 };
  const char *file = msi_profile_file();
  size_t bytes = strlen(file), ending = sizeof ENDING - 1;
  if (bytes > ending && !strcmp(file + bytes - ending, ENDING)) bytes -= ending;
  int cut = bytes < ENOUGH ? (int)bytes : ENOUGH;
  int n = snprintf(name, MPISERVE_TEXT_SIZE, "%.*s.parts", cut, file);
  if (rank >= 0) snprintf(name + n, MPISERVE_TEXT_SIZE - (size_t)n, "/rank-%d%s", rank, kind);
}

static int cannot(const char *name, int why) {
  return msi_error(MPISERVE_ECONFIG,
                   "MPISERVE_PROFILE is set, and %s cannot be written: %s; name another file with "
                   "MPISERVE_PROFILE_FILE",
                   name, strerror(why));
}

/* Reserved: in a full file system a page would be a SIGBUS at its first use. */
int msi_profile_map(const char *name, size_t bytes, void **memory, int *file) {
  int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return cannot(name, errno);
  int failed = posix_fallocate(fd, 0, (off_t)bytes);
  *memory = failed ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (!failed && *memory == MAP_FAILED) failed = errno;
  *file = fd;
  if (!failed) return MPISERVE_OK;
  close(fd);
  unlink(name);
  return cannot(name, failed);
}

int msi_profile_make_folder(void) {
  char name[MPISERVE_TEXT_SIZE];
  msi_profile_name(-1, "", name);
  return mkdir(name, 0755) && errno != EEXIST ? cannot(name, errno) : MPISERVE_OK;
}
