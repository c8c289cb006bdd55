"""The machine and the agent's folder: clock, faults, settings, files that survive power cuts."""
