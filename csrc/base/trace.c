#include "base/trace.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/profile.h"

static size_t bytes_of(int n_services, uint64_t n_events) {
  return sizeof(msi_trace_file) + (size_t)n_services * sizeof(msi_trace_name) +
         (size_t)n_events * sizeof(msi_event);
}

static uint64_t power_of_two(int64_t n) {
  uint64_t power = MSI_TRACE_LEAST;
  while (power < (uint64_t)n && power < MSI_TRACE_MOST) power *= 2;
  return power;
}

static void introduce(msi_trace_file *file, const msi_part *part) {
  file->n_services = part->n_clients + part->n_heads;
  file->run = part->run;
  file->rank = part->rank;
  file->size = part->size;
  file->role = part->role;
  file->node = part->node;
  file->pid = part->pid;
  file->opened_at_ns = part->opened_at_ns;
  file->opened_ns = part->opened_ns;
  memcpy(file->host, part->host, sizeof file->host);
}

int msi_trace_open(msi_trace *trace, const msi_part *part, int64_t n_events) {
  char name[MPISERVE_TEXT_SIZE];
  int n_services = part->n_clients + part->n_heads;
  uint64_t n = power_of_two(n_events);
  size_t bytes = bytes_of(n_services, n);
  void *memory;
  msi_profile_name(part->rank, ".trace", name);
  int fd = -1, code = msi_profile_map(name, bytes, &memory, &fd);
  if (code) return code;
  close(fd);
  memset(memory, 0, bytes); /* no page is touched first by a request */
  trace->file = memory;
  trace->names = (msi_trace_name *)(trace->file + 1);
  trace->events = (msi_event *)(trace->names + n_services);
  trace->mask = n - 1;
  introduce(trace->file, part);
  trace->file->n_events = (int64_t)n;
  trace->file->version = MSI_TRACE_VERSION;
  memcpy(trace->file->magic, "mpitrace", sizeof trace->file->magic);
  return MPISERVE_OK;
}

void msi_trace_close(msi_trace *trace) {
  if (!trace->file) return;
  munmap(trace->file, bytes_of(trace->file->n_services, trace->mask + 1));
  *trace = (msi_trace){0};
}
