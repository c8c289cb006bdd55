"""nats-server and its process; configuration of Mosquitto."""
