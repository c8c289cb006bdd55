"""Strategies that Shoal brings: one file each, named by entry points of `shoal.strategies`."""
