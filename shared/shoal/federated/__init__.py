"""Federated rounds: what device and controller compute alike. No I/O, no randomness of its own."""
