"""Checkpoints of a task: lineage, quarantine, promotion to releases, retention."""
