"""Deltas made before they are asked for."""
