"""The runner of operations."""
