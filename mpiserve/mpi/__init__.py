"""What Python does with MPI itself."""
