"""What sends: Apprise for mail and chat, signed webhooks, the heartbeat."""
