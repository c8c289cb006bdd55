"""Deletion of releases, models and dataset versions, and of the files that nothing else needs."""
