"""`python -m mpiserve bench`: mpiserve beside the floors and the rivals, in one run.

Nothing is imported here: models are loaded from this package where MPI must not start.
"""
