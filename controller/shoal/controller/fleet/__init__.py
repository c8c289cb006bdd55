"""Devices: enrolment, certificates, inventory, clocks, duplicates."""
