"""Old names of modules that plugins import, kept for one version."""
