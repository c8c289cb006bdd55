"""Tables of the drift decision: see store.tables."""

from sqlalchemy import (
    JSON,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
)

from shoal.controller.store.columns import count, metadata, number, text

drift_state = Table(  # of one subject and release; state: monitoring.drift_state.State
    "drift_state",
    metadata,
    Column("scope", String(8), primary_key=True),
    Column("subject", String(63), primary_key=True),
    Column("model", String(63), primary_key=True),
    Column("release", String(80), primary_key=True),
    number("saved_at"),
    Column("state", LargeBinary, nullable=False),
    Index("ix_drift_state_saved", "saved_at"),
)
finding = Table(  # moved: 1 is a shift of one sd, or what matters as much
    "finding",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    number("at"),
    text("kind"),
    text("scope"),
    text("subject"),
    text("model"),
    text("release"),
    text("feature"),
    text("channel"),
    text("what"),
    number("log10_p"),
    number("log10_alpha"),
    number("moved"),
    number("psi"),
    count("rows"),
    UniqueConstraint("kind", "scope", "subject", "model", "release", "feature", "at"),
    Index("ix_finding_at", "at"),
)
drift_point = Table(  # heatmap column: one row per subject and window, alarmed or not
    "drift_point",
    metadata,
    Column("scope", String(8), primary_key=True),
    Column("subject", String(63), primary_key=True),
    Column("model", String(63), primary_key=True),
    Column("at", Float, primary_key=True),
    text("release"),
    count("windows"),  # seen so far
    Column("covered", Integer, nullable=False),  # of the hours of a day; -1: no cycle is forecast
    Column("log10_p", LargeBinary, nullable=False),
    Column("moved", LargeBinary, nullable=False),
    Column("alarmed", LargeBinary, nullable=False),  # float32, float32, uint8, each (features,)
    Index("ix_drift_point_at", "at"),
)
drift_baseline = Table(  # what is listed of a drift_state; written when one of it changes
    "drift_baseline",
    metadata,
    Column("scope", String(8), primary_key=True),
    Column("subject", String(63), primary_key=True),
    Column("model", String(63), primary_key=True),
    Column("release", String(80), primary_key=True),
    text("site"),
    text("state"),  # learning, watching
    Column("drifting", JSON, nullable=False),  # names of features in alarm
    number("began_at"),
    number("updated_at"),
    number("frozen_at"),
    text("change"),  # the last that a person made, by whom and when
    text("changed_by"),
    number("changed_at"),
    Index("ix_drift_baseline_order", "model", "site", "scope", "subject", "release"),
)
baseline_change = Table(  # what a person asked for; the engine applies it
    "baseline_change",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    text("action"),
    text("model"),
    text("release"),
    text("device"),
    text("site"),
    Column("features", JSON, nullable=False),
    text("asked_by"),
    number("asked_at"),
    count("baselines"),  # that were selected when it was asked for
    count("changed"),
    count("skipped"),
    text("why_skipped"),
    Column("after", JSON, nullable=False),  # scope, subject, release of the last one that is done
    number("done_at"),
    Index("ix_baseline_change_done", "done_at"),
)
