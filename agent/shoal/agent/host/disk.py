"""Disk space that updates and imports leave free."""

#: Disk that an update leaves free, for the outbox and the system.
RESERVE = 32 << 20
