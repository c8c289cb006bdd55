"""The broker: its configuration and its process."""
