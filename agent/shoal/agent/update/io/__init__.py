"""Downloads, and the probe's process."""
