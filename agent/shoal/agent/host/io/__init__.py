"""Adapters of the host: disk, /proc, systemd."""
