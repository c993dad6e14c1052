#!/bin/bash
# Flux: 6 ranks on 2 nodes; inference ranks: 2,5.
# Submit it: flux batch SCRIPT [ARGUMENTS OF THE SIMULATION]
# Made by: python -m mpiserve jobscript --site flux -n 6 --ranks-per-node 3 examples/01_reacting_flow/per_node.toml python examples/01_reacting_flow/simulate.py
#
#flux: --job-name=mpiserve
#flux: --nodes=2
#flux: --exclusive
#flux: --time-limit=15m
#flux: --output=mpiserve-{{id}}.log

set -euo pipefail
cd "${FLUX_SUBMIT_DIR:-$PWD}"
python=${MPISERVE_PYTHON:-.venv/bin/python}  # in the environment with mpiserve
config=examples/01_reacting_flow/per_node.toml

# One thread for each rank; the configuration sets the threads of the models.
export OMP_NUM_THREADS=1

export python config
# shellcheck disable=SC2016  # each task expands this itself
flux run --nodes=2 --ntasks=6 --cores-per-task=1 bash -c '
  case $FLUX_TASK_RANK in
    2|5) exec "$python" -m mpiserve serve "$config" ;;
    *) exec "$python" examples/01_reacting_flow/simulate.py "$@" ;;
  esac
' bash "$@"
