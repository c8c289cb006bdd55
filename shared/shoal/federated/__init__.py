"""Federated rounds: messages and computations shared by device and controller. Pure: no I/O."""
