"""Tables of what stands behind an alert, its history, silences and rhythms: see store.tables."""

from sqlalchemy import JSON, Column, Index, Integer, LargeBinary, String, Table

from shoal.controller.store.columns import count, metadata, number, text

alert_member = Table(  # what one device shows; those with one alert_key share an alert
    "alert_member",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("part", String(80), primary_key=True),  # model or cause that it is about; "" for neither
    text("alert_key"),
    text("site"),
    text("severity"),
    text("state"),  # of alerts.members: pending, standing
    text("detail"),
    number("since_at"),
    number("seen_at"),
    number("hold_s"),
    number("calm_s"),  # it ends so long after the last sign; 0: only when it is seen to be over
    number("due_at"),
    Index("ix_alert_member_alert", "alert_key", "state", "since_at"),
)
Index("ix_alert_member_due", alert_member.c.due_at, sqlite_where=alert_member.c.due_at > 0)

alert_event = Table(  # history of an alert; notifications read on from their last id
    "alert_event",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    count("alert"),
    number("at"),
    text("what"),
    text("actor"),
    text("note"),
    Index("ix_alert_event_alert", "alert", "id"),
    Index("ix_alert_event_at", "at"),
)

silence = Table(  # alerts that match it begin snoozed, from begins_at to ends_at
    "silence",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("select", JSON, nullable=False),  # of alerts.silences.Selector
    text("reason"),
    number("begins_at"),
    number("ends_at"),
    number("created_at"),
    text("created_by"),
    Index("ix_silence_ends", "ends_at"),
)

device_rhythm = Table(  # how a device usually speaks: conditions.rhythm
    "device_rhythm",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("state", LargeBinary, nullable=False),
    number("due_at"),  # when it is overdue if nothing arrives; 0 while it is known to be offline
)
Index("ix_device_rhythm_due", device_rhythm.c.due_at, sqlite_where=device_rhythm.c.due_at > 0)

device_share = Table(  # failed, slow or wrong answers of a model on a device: conditions.shares
    "device_share",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("model", String(80), primary_key=True),
    Column("kind", String(16), primary_key=True),
    text("release"),
    count("trials"),
    count("hits"),
    number("score"),
)
