"""The model in a child process of the inference rank, apart from MPI: it may crash and hang."""
