"""Records of users, API tokens and the audit log."""

from typing import Any

from shoal.controller.store.records import Record


class User(Record, frozen=True, kw_only=True):
    """role: viewer < operator < approver < admin."""

    name: str
    role: str
    created_at: float


class ApiToken(Record, frozen=True, kw_only=True):
    """A token for a machine or the CLI; `secret` is returned once, on creation."""

    id: str
    name: str
    user: str
    role: str
    created_at: float
    expires_at: float
    last_used_at: float = 0.0
    secret: str = ""


class AuditEntry(Record, frozen=True, kw_only=True):
    """Audit log entry, chained: hash = SHA-256(previous hash + this entry)."""

    id: int
    at: float
    actor: str
    verb: str
    subject: str
    detail: dict[str, Any]
    hash: str
