#define _GNU_SOURCE
#include "base/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

enum { STAT_BYTES = 512 }; /* of /proc/PID/stat; the start time lies within */

/* Reads /proc/PID/stat: 0 if there is no such process. */
static int read_stat(int pid, char text[STAT_BYTES]) {
  char path[32];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = file < 0 ? 0 : read(file, text, STAT_BYTES - 1);
  if (file >= 0) close(file);
  text[n > 0 ? n : 0] = 0;
  return n > 0;
}

/* The state is the field after the name, which may hold anything but ends with the last ')'; the
 * start time is the 20th field from there. */
static int parse_stat(const char *text, char *state, uint64_t *start) {
  const char *at = strrchr(text, ')');
  unsigned long long ticks;
  if (!at || sscanf(at + 1,
                    " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
                    "%llu",
                    state, &ticks) != 2)
    return 0;
  *start = ticks;
  return 1;
}

msi_identity msi_identity_own(void) {
  msi_identity own = {.pid = (int32_t)getpid()};
  char text[STAT_BYTES], state;
  struct stat space;
  if (!read_stat(own.pid, text) || !parse_stat(text, &state, &own.start)) own.start = 0;
  if (!stat("/proc/self/ns/pid", &space)) own.pid_space = (uint64_t)space.st_ino;
  if (gethostname(own.host, sizeof own.host)) own.host[0] = 0;
  own.host[sizeof own.host - 1] = 0;
  return own;
}

/* Two hosts may give their first space of numbers the same inode: hence the name as well. */
int msi_identity_is_near(const msi_identity *own, const msi_identity *other) {
  return own->start && other->start && own->pid_space && own->pid_space == other->pid_space &&
         !strncmp(own->host, other->host, sizeof own->host);
}

msi_peer_state msi_peer_state_of(const msi_identity *near) {
  char text[STAT_BYTES], state;
  uint64_t start;
  if (!read_stat(near->pid, text)) return MSI_PEER_DEAD;
  if (!parse_stat(text, &state, &start)) return MSI_PEER_UNKNOWN;
  if (start != near->start || state == 'Z' || state == 'X') return MSI_PEER_DEAD;
  if (state == 'T' || state == 't') return MSI_PEER_STOPPED;
  return state == 'D' ? MSI_PEER_STUCK : MSI_PEER_ALIVE;
}

int msi_peer_open(int pid) {
#ifdef SYS_pidfd_open
  return (int)syscall(SYS_pidfd_open, pid, 0);
#else
  errno = ENOSYS + 0 * pid;
  return -1;
#endif
}

/* The number may be another process's by the time of the call, hence the look after it. */
int msi_peer_watch(const msi_identity *near) {
  int file = msi_peer_open(near->pid);
  if (file >= 0 && msi_peer_state_of(near) != MSI_PEER_DEAD) return file;
  if (file >= 0) close(file);
  return -1;
}
