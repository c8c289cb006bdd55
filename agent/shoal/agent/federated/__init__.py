"""Federated rounds on a device: eligibility, training, secure aggregation, upload."""
