"""Folders that are carried: import, export, cache, seal."""
