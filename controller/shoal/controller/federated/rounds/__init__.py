"""Running rounds: state machine, journal, messages from and to devices."""
