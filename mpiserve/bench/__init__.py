"""`python -m mpiserve bench`: measure mpiserve, lower bounds and alternatives in one run.

This file imports nothing, since processes without MPI load models from this package.
"""
