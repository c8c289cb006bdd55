"""Who may do what: users, tokens, roles, the audit log, idempotency."""
