"""Tables of rollouts, assignments and undeployments: see store.tables."""

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Table,
    Text,
)

from shoal.controller.store.columns import count, metadata, number, text

rollout = Table(
    "rollout",
    metadata,
    Column("id", String(16), primary_key=True),
    text("release"),
    text("model"),
    Column("plan", JSON, nullable=False),
    text("state"),
    text("reason"),
    Column("stages", JSON, nullable=False),
    number("created_at"),
    text("created_by"),
    number("finished_at"),
    number("due_at"),  # when the stepper looks at it next; events set it to 0
    number("look_at"),  # when it looks next for what no event tells: deadlines, who is online
    text("cursor"),  # of a rollout that is ending: the last device whose order was withdrawn
    Index("ix_rollout_state", "state", "due_at"),
    Index("ix_rollout_release", "release"),
)
rollout_device = Table(  # boot, seq: of the last event that was applied
    "rollout_device",
    metadata,
    Column("rollout", ForeignKey("rollout.id"), primary_key=True),
    Column("device", String(63), primary_key=True),
    text("stage"),
    text("state"),
    count("attempt"),
    text("cause"),
    text("detail"),
    text("previous"),
    number("ordered_at"),
    text("boot"),
    count("seq"),
    number("updated_at"),
    Column("facts", JSON, nullable=False),
    Index("ix_rollout_device_device", "device"),
    Index("ix_rollout_device_stage", "rollout", "stage", "state"),
)
rollout_count = Table(  # sums over the devices of a stage in one state: see rollouts.device_rows
    "rollout_count",
    metadata,
    Column("rollout", ForeignKey("rollout.id"), primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("state", String(32), primary_key=True),
    count("devices"),
    count("comparing"),
    count("compared"),
    count("disagreed"),
)
gate_look = Table(  # one look of a stage's behaviour gates; since: when the stage began
    "gate_look",
    metadata,
    Column("rollout", String(16), primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("since", Float, primary_key=True),
    Column("at", Float, primary_key=True),
    text("outcome"),
    Column("evidence", JSON, nullable=False),  # rollouts.behaviour_records.Evidence
    Column("receipt", JSON, nullable=False),  # rollouts.behaviour_records.Receipt
    Index("ix_gate_look_at", "at"),
)
gate_input = Table(  # what looks were computed from, by content; body: JSON, deflated
    "gate_input",
    metadata,
    Column("rollout", String(16), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    number("at"),
    Column("body", LargeBinary, nullable=False),
    Index("ix_gate_input_at", "at"),
)
assignment = Table(  # desired state of a device; published when sent_version < version
    "assignment",
    metadata,
    Column("device", String(63), primary_key=True),
    count("version"),
    count("sent_version"),
    Column("orders", JSON, nullable=False),  # model -> shoal.trust.Order builtins
    Column("message", LargeBinary, nullable=False),
    number("signed_at"),
    number("expires_at"),
    Index("ix_assignment_expires", "expires_at"),
)
Index(
    "ix_assignment_unsent",
    assignment.c.device,
    sqlite_where=assignment.c.sent_version < assignment.c.version,
    postgresql_where=assignment.c.sent_version < assignment.c.version,
)

undeployment = Table(  # select, named: which devices; cursor: the last one that was looked at
    "undeployment",
    metadata,
    Column("id", String(16), primary_key=True),
    text("model"),
    Column("select", JSON, nullable=False),
    Column("named", JSON, nullable=False),
    text("state"),
    text("reason"),
    text("cursor"),
    number("created_at"),
    text("created_by"),
    number("finished_at"),
    Index("ix_undeployment_state", "state"),
)
undeployment_device = Table(
    "undeployment_device",
    metadata,
    Column("undeployment", ForeignKey("undeployment.id"), primary_key=True),
    Column("device", String(63), primary_key=True),
    text("state"),
    count("attempt"),
    text("detail"),
    number("updated_at"),
    Index("ix_undeployment_device_state", "undeployment", "state"),
)
