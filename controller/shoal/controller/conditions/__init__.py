"""What devices show that a person should know of: silence, certificates, faults, health."""
