"""Ranks that train: they learn from recorded pairs, and publish versions of a model."""

from mpiserve.backends.torch.normalized import normalized

__all__ = ["normalized"]
