"""Running rounds: state machine, runner, journal, messages to and from devices."""
