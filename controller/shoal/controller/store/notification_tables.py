"""Tables of notifications: channels, their outbox, and each attempt: see store.tables."""

from sqlalchemy import JSON, Boolean, Column, ForeignKey, Index, Integer, String, Table

from shoal.controller.store.columns import count, metadata, number, text

channel = Table(  # the address and the secret are in keys/channels, not here
    "channel",
    metadata,
    Column("name", String(63), primary_key=True),
    text("kind"),
    text("target"),  # the address without what is secret in it
    text("severity"),  # the least
    Column("sites", JSON, nullable=False),
    text("quiet"),  # "22:00-07:00", "" for never
    text("zone"),
    Column("escalated_only", Boolean, nullable=False, server_default="0"),
    number("digest_s"),
    number("created_at"),
    text("created_by"),
)
delivery = Table(  # one message to one channel
    "delivery",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("channel", ForeignKey("channel.name"), nullable=False),
    text("state"),
    Column("events", JSON, nullable=False),  # of notifications.records.Item
    number("created_at"),
    number("due_at"),
    count("attempts"),
    text("error"),
    number("ended_at"),
    Index("ix_delivery_channel", "channel", "created_at"),
    Index("ix_delivery_created", "created_at"),
)
Index("ix_delivery_due", delivery.c.due_at, sqlite_where=delivery.c.due_at > 0)
attempt = Table(  # written before it is made: one without an end may have arrived
    "delivery_attempt",
    metadata,
    Column("delivery", ForeignKey("delivery.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    number("began_at"),
    number("ended_at"),
    text("outcome"),  # "": it was interrupted; sent, refused, failed
    text("error"),
)
