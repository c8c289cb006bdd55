"""Lineage: from data to devices and back."""
