"""The experiments of arXiv 2503.13343, beside the system that it describes and bare ZeroMQ."""
