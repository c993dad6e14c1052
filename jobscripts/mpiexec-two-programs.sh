#!/bin/bash
# mpiexec and a hostfile: 6 ranks on 2 nodes; inference ranks: 2,5.
# Submit it: HOSTFILE=hosts bash SCRIPT [ARGUMENTS OF THE SIMULATION]
# Made by: python -m mpiserve jobscript --site mpirun -n 6 --ranks-per-node 3 examples/01_reacting_flow/per_node.toml python examples/01_reacting_flow/simulate.py
#
# HOSTFILE names 2 hosts, a line for each: HOST slots=3

set -euo pipefail
hostfile=${HOSTFILE:?name the file of the hosts}
python=${MPISERVE_PYTHON:-.venv/bin/python}  # of the environment with mpiserve
config=examples/01_reacting_flow/per_node.toml

# No threads but the ranks themselves; those of the models are in the configuration.
export OMP_NUM_THREADS=1

"${MPIEXEC:-mpiexec}" --map-by slot --hostfile "$hostfile" -n 2 "$python" examples/01_reacting_flow/simulate.py "$@" : \
  -n 1 "$python" -m mpiserve serve "$config" : \
  -n 2 "$python" examples/01_reacting_flow/simulate.py "$@" : \
  -n 1 "$python" -m mpiserve serve "$config"
