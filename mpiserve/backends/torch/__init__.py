"""Run torch modules: backends, model files, weights and dtypes."""
