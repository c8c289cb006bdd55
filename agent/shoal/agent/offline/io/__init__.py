"""Offline bundles: import, export, cache, seal."""
