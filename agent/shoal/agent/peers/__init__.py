"""Devices of one site that share downloads."""
