"""Secure aggregation, the controller's side (Bell et al. 2020)."""
