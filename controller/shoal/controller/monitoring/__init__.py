"""Telemetry judged: drift, histograms, performance, triggers."""
