"""Differential privacy: central noise, adaptive clipping, the privacy accountant."""
