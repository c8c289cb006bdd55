"""Offline bundles: exported for devices without a network, and the bundles they return."""
