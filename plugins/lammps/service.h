/* service.h: a potential that inference ranks of mpiserve serve.
 *
 * Copyright (C) 2026 the mpiserve developers. GNU General Public License, version 2: see LICENSE.
 */
#ifndef MPISERVE_LAMMPS_SERVICE_H
#define MPISERVE_LAMMPS_SERVICE_H

#include <cstdint>
#include <string>
#include <vector>

struct mpiserve_service;

namespace mpiserve_lammps {

/* The atoms of one rank and their neighbours, and what the potential says of them. Node n is an
 * atom, edge e leads from node edges[2e] to node edges[2e + 1], and vectors[3e] is the position of
 * the second less that of the first. */
struct Graph {
  std::vector<int> atoms;        /* of each node: the index in LAMMPS */
  std::vector<int64_t> species;  /* of each node: the number that pair_coeff gives its type */
  std::vector<double> own;       /* of each node: 1, or 0 for atoms of other ranks */
  std::vector<int64_t> edges;    /* two for each edge */
  std::vector<double> vectors;   /* three for each edge */
  std::vector<double> energies;  /* answer: of each node */
  std::vector<double> gradients; /* answer: three for each edge, dE / d vectors, where E is the sum
                                    of the energies of own nodes */

  void clear();
};

/* Opens the session of this process if it has none, finds the service NAME.vjp and asks it.
 * The session ends in MPI_Finalize, so it outlives `clear` and each pair style. */
class Service {
public:
  /* Collective over the simulation ranks, the first time in a process; then local. Returns an
   * empty text, or what went wrong. */
  std::string open(const std::string &name);

  /* Fills the answers of a graph, and waits for them. Returns an empty text, or what went wrong. */
  std::string ask(Graph &graph);

private:
  mpiserve_service *service_ = nullptr;
};

} // namespace mpiserve_lammps

#endif
