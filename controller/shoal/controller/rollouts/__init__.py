"""Rollouts: stages, gates, assignments, reverts."""
