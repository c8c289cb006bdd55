"""Checkpoints of a task: lineage, quarantine, releases of them, retention."""
