"""Telemetry to the controller: windows, events, inventory, and the outbox."""
