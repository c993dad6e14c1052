#!/bin/bash
# mpiexec and a hostfile: 6 ranks on 2 nodes; inference ranks: 2,5.
# Submit it: HOSTFILE=hosts bash SCRIPT [ARGUMENTS OF THE SIMULATION]
# Made by: python -m mpiserve jobscript --site mpirun -n 6 --ranks-per-node 3 examples/01_reacting_flow/per_node.toml python examples/01_reacting_flow/simulate.py
#
# HOSTFILE names 2 hosts, a line for each: HOST slots=3

set -euo pipefail
hostfile=${HOSTFILE:?set it to the path of a host file}
python=${MPISERVE_PYTHON:-.venv/bin/python}  # in the environment with mpiserve
config=examples/01_reacting_flow/per_node.toml

# One thread for each rank; the configuration sets the threads of the models.
export OMP_NUM_THREADS=1

"${MPIEXEC:-mpiexec}" --map-by slot --hostfile "$hostfile" -n 2 "$python" examples/01_reacting_flow/simulate.py "$@" : \
  -n 1 "$python" -m mpiserve serve "$config" : \
  -n 2 "$python" examples/01_reacting_flow/simulate.py "$@" : \
  -n 1 "$python" -m mpiserve serve "$config"
