"""Datasets, and the tables and items that they are made of."""
