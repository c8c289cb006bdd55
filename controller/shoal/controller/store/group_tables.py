"""Tables of groups: what they run, and the devices that are to be looked at (see store.tables)."""

from sqlalchemy import JSON, Column, Index, Integer, String, Table, Text

from shoal.controller.store.columns import metadata, number, text

device_group = Table(  # selector: its select as text, one group for each
    "device_group",
    metadata,
    Column("name", String(120), primary_key=True),
    Column("selector", Text, nullable=False, unique=True),
    Column("select", JSON, nullable=False),
    number("created_at"),
    text("created_by"),
)
group_release = Table(  # what a group runs of a model; release "": none, it was undeployed
    "group_release",
    metadata,
    Column("group", String(120), primary_key=True),
    Column("model", Text, primary_key=True),
    text("release"),
    text("rollout"),  # or undeployment, by which it was moved
    number("since"),
    text("reason"),
    Column("before", JSON, nullable=False),  # earlier ones, newest first
    Index("ix_group_release_rollout", "rollout"),
)
trailing_stage = Table(  # of a rollout whose release a group runs
    "trailing_stage",
    metadata,
    Column("rollout", String(16), primary_key=True),
    text("state"),
    text("reason"),
    number("since"),
    number("due_at"),
    Index("ix_trailing_stage_state", "state", "due_at"),
)
device_override = Table(  # kind: pin, exclude (of a model), hold (model "")
    "device_override",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("model", Text, primary_key=True),
    text("release"),
    text("reason"),
    number("created_at"),
    text("created_by"),
)
changed_device = Table(  # queue: devices whose desired state is to be looked at
    "changed_device",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("device", String(63), nullable=False),
    text("why"),
)
device_sweep = Table(  # queue: all devices of a selector are to be looked at; after: the last one
    "device_sweep",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("select", JSON, nullable=False),
    text("after"),
)
deviation = Table(  # devices that do not run what they should; want "": their group runs none
    "deviation",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("model", Text, primary_key=True),
    text("group"),
    text("want"),
    text("state"),
    text("why"),
    number("since"),
    Index("ix_deviation_group", "group", "model", "device"),
    Index("ix_deviation_state", "state"),
)
