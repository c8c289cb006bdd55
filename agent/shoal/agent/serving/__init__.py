"""Models in service: sessions, requests, windows, labels, throttling."""
