"""The device CA."""
