"""Tasks, plans of their rounds, scheduling and client selection."""
