"""Records of users, API tokens and the audit log."""

from typing import Any

from shoal.controller.store.records import Record


class User(Record, frozen=True, kw_only=True):
    """role: viewer < operator < approver < admin.

    disabled_at          since when the user can neither sign in nor use a token; 0 for not at all
    password_expires_at  end of a one-time password, which is to be replaced at the next sign-in;
                         0 for a password that the user chose
    sessions, tokens     how many are valid
    seen_at              last use of a session or token, to the minute
    one_time_password    shown once, when it was made
    """

    name: str
    role: str
    created_at: float
    disabled_at: float = 0.0
    password_expires_at: float = 0.0
    sessions: int = 0
    tokens: int = 0
    seen_at: float = 0.0
    one_time_password: str = ""


class SessionInfo(Record, frozen=True, kw_only=True):
    """A console session. id: the first 16 digits of its hash; agent: the browser's User-Agent."""

    id: str
    user: str
    created_at: float
    expires_at: float
    seen_at: float
    address: str = ""
    agent: str = ""
    current: bool = False


class Ended(Record, frozen=True, kw_only=True):
    """How many sessions and tokens ended."""

    sessions: int = 0
    tokens: int = 0


class ApiToken(Record, frozen=True, kw_only=True):
    """A token for a machine or the CLI; `secret` is returned once, on creation.

    models, sites   it is for these alone, see `shoal.controller.access.scopes`; empty for all
    """

    id: str
    name: str
    user: str
    role: str
    created_at: float
    expires_at: float
    last_used_at: float = 0.0
    models: list[str] = []
    sites: list[str] = []
    secret: str = ""


class AuditEntry(Record, frozen=True, kw_only=True):
    """Audit log entry, chained: hash = SHA-256(previous hash + this entry).

    address   network address that the request came from; "" for the controller itself
    """

    id: int
    at: float
    actor: str
    verb: str
    subject: str
    detail: dict[str, Any]
    hash: str
    address: str = ""
