"""Prefetch of deltas."""
