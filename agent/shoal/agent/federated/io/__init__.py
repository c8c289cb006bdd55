"""The trainer's process, the device's rows, the site's gateway."""
