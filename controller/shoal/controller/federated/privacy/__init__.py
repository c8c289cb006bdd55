"""Differential privacy: noise of the controller, and the accountant."""
