/* Copyright (C) 2026 the mpiserve developers. GPL, version 2: see LICENSE. */
#include "pair_mpiserve.h"

#include "atom.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"

#include <cstring>

using namespace LAMMPS_NS;

PairMpiserve::PairMpiserve(LAMMPS *lammps) : Pair(lammps) {
  restartinfo = single_enable = 0;
  one_coeff = manybody_flag = 1;
  no_virial_fdotr_compute = 1; /* the virial is the sum over edges, of each atom too */
  centroidstressflag = CENTROID_NOTAVAIL;
}

PairMpiserve::~PairMpiserve() {
  if (!allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
}

void PairMpiserve::settings(int narg, char **arg) {
  if (narg != 2) error->all(FLERR, std::string("use: pair_style mpiserve SERVICE CUTOFF"));
  name_ = arg[0];
  cutoff_ = utils::numeric(FLERR, arg[1], false, lmp);
  if (!(cutoff_ > 0)) error->all(FLERR, std::string("pair_style mpiserve: the cutoff is above 0"));
  std::string problem = service_.open(name_);
  if (!problem.empty()) error->all(FLERR, "pair_style mpiserve: " + problem);
}

void PairMpiserve::allocate() {
  int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  allocated = 1;
}

/* pair_coeff * * SPECIES..., one for each type: a number of the model's, or NULL. */
void PairMpiserve::coeff(int narg, char **arg) {
  int types = atom->ntypes;
  if (narg != 2 + types || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR, "pair_style mpiserve: use pair_coeff * * and " + std::to_string(types) +
                          " numbers of species, one for each type, or NULL");
  if (!allocated) allocate();
  species_.assign(types + 1, -1);
  for (int i = 1; i <= types; i++)
    if (strcmp(arg[1 + i], "NULL") != 0)
      species_[i] = utils::inumeric(FLERR, arg[1 + i], false, lmp);
  for (int i = 1; i <= types; i++)
    for (int j = 1; j <= types; j++) setflag[i][j] = species_[i] >= 0 && species_[j] >= 0;
}

void PairMpiserve::init_style() {
  if (!force->newton_pair)
    error->all(FLERR, std::string("pair_style mpiserve: forces on ghost atoms need newton on"));
  if (atom->molecular != Atom::ATOMIC)
    for (int i = 1; i <= 3; i++)
      if (force->special_lj[i] != 1.0)
        error->all(FLERR, std::string("pair_style mpiserve: the model needs all neighbours: set "
                                      "special_bonds lj 1 1 1"));
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

double PairMpiserve::init_one(int i, int j) {
  if (!setflag[i][j]) error->all(FLERR, std::string("pair_style mpiserve: pair_coeff is missing"));
  return cutoff_;
}

void PairMpiserve::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  graph_.clear();
  add_nodes();
  for (int node = 0; node < list->inum; node++) add_edges(node);
  std::string problem = service_.ask(graph_);
  if (!problem.empty()) error->one(FLERR, "pair_style mpiserve: " + problem);
  if (eflag_either) take_energies();
  take_forces();
}

/* The atoms of this rank; the atoms of others become nodes when an edge leads to them. */
void PairMpiserve::add_nodes() {
  node_of_.assign(atom->nlocal + atom->nghost, -1);
  for (int n = 0; n < list->inum; n++) {
    node_of(list->ilist[n]);
    graph_.own[n] = 1;
  }
}

int PairMpiserve::node_of(int i) {
  if (node_of_[i] < 0) {
    node_of_[i] = graph_.atoms.size();
    graph_.atoms.push_back(i);
    graph_.species.push_back(species_[atom->type[i]]);
    graph_.own.push_back(0);
  }
  return node_of_[i];
}

void PairMpiserve::add_edges(int node) {
  int i = list->ilist[node];
  const double *const *x = atom->x;
  for (int n = 0; n < list->numneigh[i]; n++) {
    int j = list->firstneigh[i][n] & NEIGHMASK;
    double vector[3] = {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]};
    add_edge(node, j, vector);
  }
}

void PairMpiserve::add_edge(int node, int j, const double *vector) {
  double square = vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2];
  if (square >= cutoff_ * cutoff_) return;
  graph_.edges.push_back(node);
  graph_.edges.push_back(node_of(j));
  graph_.vectors.insert(graph_.vectors.end(), vector, vector + 3);
}

void PairMpiserve::take_energies() {
  for (int node = 0; node < list->inum; node++) {
    if (eflag_global) eng_vdwl += graph_.energies[node];
    if (eflag_atom) eatom[list->ilist[node]] += graph_.energies[node];
  }
}

void PairMpiserve::take_forces() {
  double **f = atom->f;
  for (size_t e = 0; e < graph_.edges.size() / 2; e++) {
    int i = graph_.atoms[graph_.edges[2 * e]], j = graph_.atoms[graph_.edges[2 * e + 1]];
    const double *force = &graph_.gradients[3 * e]; /* on i: the vector is x_j - x_i */
    for (int d = 0; d < 3; d++) f[i][d] += force[d];
    for (int d = 0; d < 3; d++) f[j][d] -= force[d];
    if (vflag_either) take_virial(i, j, &graph_.vectors[3 * e], force);
  }
}

/* The order is that of LAMMPS: xx, yy, zz, xy, xz, yz. An atom gets half of each of its edges. */
void PairMpiserve::take_virial(int i, int j, const double *vector, const double *force) {
  static const int A[6] = {0, 1, 2, 0, 0, 1}, B[6] = {0, 1, 2, 1, 2, 2};
  for (int k = 0; k < 6; k++) {
    double v = -vector[A[k]] * force[B[k]];
    if (vflag_global) virial[k] += v;
    if (!vflag_atom) continue;
    vatom[i][k] += 0.5 * v;
    vatom[j][k] += 0.5 * v;
  }
}
