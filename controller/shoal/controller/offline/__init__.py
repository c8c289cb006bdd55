"""Folders for devices without a network."""
