"""nats-server, Mosquitto, and the process that runs the former."""
