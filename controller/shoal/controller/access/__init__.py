"""Access control: users, tokens, roles, the audit log, idempotency keys."""
