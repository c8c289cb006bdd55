"""Channels and deliveries as stored and as the API shows them: without secrets."""

from shoal.controller.store.records import Record

KINDS = ("apprise", "webhook")
PENDING, SENT, FAILED = "pending", "sent", "failed"


class Channel(Record, frozen=True, kw_only=True):
    """Where notifications of alerts go.

    kind      "apprise" (mail, chat: an Apprise URL), or "webhook" (Standard Webhooks, signed)
    target    the address without its secrets
    severity  the least that is sent
    sites     only of these; empty for all
    quiet     "HH:MM-HH:MM" in `zone`, in which only critical ones are sent; "" for never
    digest_s  messages wait so long for others, and are sent as one
    escalated_only  only alerts that nobody took
    secret    of a webhook, shown once: "whsec_..."
    """

    name: str
    kind: str
    target: str
    severity: str
    sites: list[str]
    quiet: str
    zone: str
    escalated_only: bool
    digest_s: float
    created_at: float
    created_by: str
    secret: str = ""


class Item(Record, frozen=True, kw_only=True):
    """One event of an alert in a message."""

    event: int
    alert: int
    at: float
    what: str
    severity: str
    kind: str
    site: str
    title: str
    detail: str
    next_step: str


class Attempt(Record, frozen=True, kw_only=True):
    """One attempt. outcome: sent, refused (not tried again), failed; "" if it runs or was cut."""

    number: int
    began_at: float
    ended_at: float
    outcome: str
    error: str


class Delivery(Record, frozen=True, kw_only=True):
    """One message to one channel: what it says, and each attempt to deliver it.

    state    pending, sent, failed
    due_at   when it is tried next; 0: not again
    """

    id: str
    channel: str
    state: str
    events: list[Item]
    created_at: float
    due_at: float
    attempts: int
    error: str
    ended_at: float
    tries: list[Attempt] = []


def title(items: list[Item]) -> str:
    """Subject of a message."""
    if len(items) == 1:
        one = items[0]
        return f"[{one.severity}] {one.title}" + ("" if one.what == "opened" else f" ({one.what})")
    worst = "critical" if any(i.severity == "critical" for i in items) else items[0].severity
    return f"[{worst}] {len(items)} alerts of Shoal"


def body(items: list[Item], most: int = 30) -> str:
    """Text of a message: what, the details, and the next step."""
    if len(items) == 1:
        one = items[0]
        show = f"\n\nshoal alert show {one.alert}" if one.alert else ""  # a test has no alert
        return f"{one.detail}\n\nNext step: {one.next_step}{show}"
    lines = [f"{i.what}: [{i.severity}] {i.title} (shoal alert show {i.alert})" for i in items]
    more = [f"and {len(items) - most} more: shoal alert list"] if len(items) > most else []
    return "\n".join(lines[:most] + more)
