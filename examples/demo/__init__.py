"""`shoal demo`: the whole life cycle of a model on this machine, with real processes."""
