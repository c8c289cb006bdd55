"""Requests to the controller about the device's certificate."""
