"""Tasks, their round plans, and when the next round of a task starts with which devices."""
