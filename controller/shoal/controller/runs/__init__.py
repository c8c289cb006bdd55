"""Runs: trainings and imports with what went in and what came out, to search and compare."""
