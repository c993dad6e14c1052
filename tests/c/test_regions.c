/* Other profilers, for which the functions of this program stand. */
#include <stdint.h>
#include <stdlib.h>

#include "base/regions.h"
#include "check.h"

static char said[256];

static void say(const char *what, const char *name) {
  size_t n = strlen(said);
  snprintf(said + n, sizeof said - n, "%s %s;", what, name);
}

void cali_begin_region(const char *name);
void cali_end_region(const char *name);
void SCOREP_User_RegionByNameBegin(const char *name, uint32_t type, const char *file, uint32_t n);
void SCOREP_User_RegionByNameEnd(const char *name);
int nvtxRangePushA(const char *name);
int nvtxRangePop(void);

void cali_begin_region(const char *name) { say("C+", name); }
void cali_end_region(const char *name) { say("C-", name); }
void SCOREP_User_RegionByNameBegin(const char *name, uint32_t type, const char *file, uint32_t n) {
  CHECK(!type && file && !n);
  say("S+", name);
}
void SCOREP_User_RegionByNameEnd(const char *name) { say("S-", name); }
int nvtxRangePushA(const char *name) { return say("N+", name), 0; }
int nvtxRangePop(void) { return say("N-", ""), 0; }

int main(void) {
  msi_region_begin("before");
  msi_region_end("before");
  CHECK(!*said);
  msi_regions_open();
  msi_region_begin("a");
  msi_region_begin("b");
  msi_region_end("b");
  msi_region_end("a");
  CHECK_TEXT(said, "C+ a;S+ a;N+ a;C+ b;S+ b;N+ b;N- ;S- b;C- b;N- ;S- a;C- a;");
  return check_result();
}
