"""Notifications of alerts: channels, their outbox with each attempt, and the heartbeat."""
