/* pair_mpiserve.h: pair_style mpiserve SERVICE CUTOFF
 *
 * Copyright (C) 2026 the mpiserve developers. GNU General Public License, version 2: see LICENSE.
 */
#ifndef MPISERVE_LAMMPS_PAIR_H
#define MPISERVE_LAMMPS_PAIR_H

#include "pair.h"
#include "service.h"

#include <string>
#include <vector>

namespace LAMMPS_NS {

/* Energies, forces and virial of a potential whose energies of atoms depend on the vectors to all
 * neighbours within the cutoff. */
class PairMpiserve : public Pair {
public:
  explicit PairMpiserve(LAMMPS *lammps);
  ~PairMpiserve() override;

  void settings(int narg, char **arg) override;
  void coeff(int narg, char **arg) override;
  void init_style() override;
  double init_one(int i, int j) override;
  void compute(int eflag, int vflag) override;

private:
  void allocate();
  void add_nodes();
  void add_edges(int node);
  void add_edge(int node, int atom, const double *vector);
  int node_of(int atom);
  void take_energies();
  void take_forces();
  void take_virial(int i, int j, const double *vector, const double *force);

  std::string name_;
  double cutoff_ = 0;
  std::vector<int> species_; /* by type: what pair_coeff says; -1: not of this style */
  std::vector<int> node_of_; /* by atom, ghosts too: its node; -1: none */
  mpiserve_lammps::Graph graph_;
  mpiserve_lammps::Service service_;
};

} // namespace LAMMPS_NS

#endif
