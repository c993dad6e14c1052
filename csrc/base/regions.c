#define _GNU_SOURCE
#include "base/regions.h"

#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

enum { SCOREP_COMMON = 0 }; /* SCOREP_USER_REGION_TYPE_COMMON */

/* NULL: the profiler is not there. */
static struct {
  void (*caliper_begin)(const char *name);
  void (*caliper_end)(const char *name);
  void (*scorep_begin)(const char *name, uint32_t type, const char *file, uint32_t line);
  void (*scorep_end)(const char *name);
  int (*nvtx_push)(const char *name);
  int (*nvtx_pop)(void);
} tools;

/* Is there a pair of functions? C has no conversion from a data pointer to one of a function. */
static void find(void *begin, void *end, const char *begin_name, const char *end_name) {
  void *first = dlsym(RTLD_DEFAULT, begin_name), *second = dlsym(RTLD_DEFAULT, end_name);
  if (!first || !second) return;
  memcpy(begin, &first, sizeof first);
  memcpy(end, &second, sizeof second);
}

void msi_regions_open(void) {
  find(&tools.caliper_begin, &tools.caliper_end, "cali_begin_region", "cali_end_region");
  find(&tools.scorep_begin, &tools.scorep_end, "SCOREP_User_RegionByNameBegin",
       "SCOREP_User_RegionByNameEnd");
  find(&tools.nvtx_push, &tools.nvtx_pop, "nvtxRangePushA", "nvtxRangePop");
}

void msi_region_begin(const char *name) {
  if (tools.caliper_begin) tools.caliper_begin(name);
  if (tools.scorep_begin) tools.scorep_begin(name, SCOREP_COMMON, "mpiserve", 0);
  if (tools.nvtx_push) tools.nvtx_push(name);
}

void msi_region_end(const char *name) {
  if (tools.nvtx_pop) tools.nvtx_pop();
  if (tools.scorep_end) tools.scorep_end(name);
  if (tools.caliper_end) tools.caliper_end(name);
}
