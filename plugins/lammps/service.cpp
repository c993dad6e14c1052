/* Copyright (C) 2026 the mpiserve developers. GPL, version 2: see LICENSE. */
#include "service.h"

#include <mpiserve.h>

namespace mpiserve_lammps {

void Graph::clear() {
  atoms.clear();
  species.clear();
  own.clear();
  edges.clear();
  vectors.clear();
}

std::string Service::open(const std::string &name) {
  static mpiserve_session *session = nullptr;
  /* Under libmpiserve_world.so this is the session that MPI_Init has opened. */
  int code = session ? MPISERVE_OK : mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session);
  if (!code) code = mpiserve_service_find(session, (name + ".vjp").c_str(), &service_);
  return code ? mpiserve_last_error() : "";
}

static mpiserve_tensor tensor(const char *name, void *data, int dtype, int64_t rows,
                              int64_t width) {
  mpiserve_tensor made = {name, data, dtype, width ? 2 : 1, {rows, width}};
  return made;
}

std::string Service::ask(Graph &graph) {
  int64_t nodes = graph.atoms.size(), edges = graph.edges.size() / 2;
  graph.energies.resize(nodes);
  graph.gradients.resize(3 * edges);
  mpiserve_tensor inputs[] = {
      tensor("species", graph.species.data(), MPISERVE_INT64, nodes, 0),
      tensor("edges", graph.edges.data(), MPISERVE_INT64, edges, 2),
      tensor("vectors", graph.vectors.data(), MPISERVE_FLOAT64, edges, 3),
      tensor("vector_energies", graph.own.data(), MPISERVE_FLOAT64, nodes, 0),
  };
  mpiserve_tensor outputs[] = {
      tensor("energies", graph.energies.data(), MPISERVE_FLOAT64, nodes, 0),
      tensor("vjp_vectors", graph.gradients.data(), MPISERVE_FLOAT64, edges, 3),
  };
  int code = mpiserve_infer(service_, 4, inputs, 2, outputs, MPISERVE_FOREVER, nullptr);
  return code ? mpiserve_last_error() : "";
}

} // namespace mpiserve_lammps
