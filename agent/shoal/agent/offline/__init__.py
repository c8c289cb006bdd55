"""Offline bundles: updates and reports of a device without a network."""
