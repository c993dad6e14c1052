"""Serve models on an inference rank."""
