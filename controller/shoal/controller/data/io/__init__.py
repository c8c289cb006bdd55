"""Adapters of datasets: files are read in a process with limits."""
