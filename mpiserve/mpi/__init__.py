"""Use MPI from Python: check it, bind ranks to cores, wait for requests, watch hosts."""
