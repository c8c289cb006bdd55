"""MLflow: models imported from its registry, runs mirrored to it, aliases followed."""
