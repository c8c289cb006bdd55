"""TLS between devices of one site."""
