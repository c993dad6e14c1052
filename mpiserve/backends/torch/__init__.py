"""Models of torch: modules, their files and weights, DeepSpeed."""
