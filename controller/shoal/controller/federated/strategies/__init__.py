"""Built-in strategies: one file each, named by entry points of `shoal.strategies`."""
