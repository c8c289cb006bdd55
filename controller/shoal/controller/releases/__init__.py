"""Releases: models, gates, signing, quarantine, the artifact server."""
