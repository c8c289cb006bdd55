"""Tables of runs: see store.tables. What an operation or a release holds is not held here again."""

from sqlalchemy import JSON, Column, Float, ForeignKey, Index, String, Table, Text

from shoal.controller.store.columns import metadata, text

run = Table(  # what only the run itself knows; note: by people
    "run",
    metadata,
    Column("operation", ForeignKey("operation.id"), primary_key=True),
    text("main"),
    text("note"),
    Column("environment", JSON, server_default="{}", nullable=False),
    Column("curves", JSON, server_default="{}", nullable=False),
)
run_value = Table(  # tags; and, to filter and sort by, metrics of a run and parameters as used
    "run_value",
    metadata,
    Column("run", ForeignKey("operation.id"), primary_key=True),
    Column("kind", String(8), primary_key=True),  # metric, param or tag
    Column("name", String(120), primary_key=True),
    Column("number", Float),
    Column("value", Text, server_default="", nullable=False),
    Index("ix_run_value_number", "kind", "name", "number", "run"),
    Index("ix_run_value_text", "kind", "name", "value", "run"),
)
