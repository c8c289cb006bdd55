"""Tests of minutes with real processes, of what quicker ones hold in memory: for `make soak`."""
