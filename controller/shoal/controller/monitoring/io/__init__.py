"""Adapters of monitoring: telemetry as files."""
