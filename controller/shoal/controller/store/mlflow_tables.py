"""Tables of MLflow: see store.tables."""

from sqlalchemy import JSON, Column, Index, Integer, String, Table

from shoal.controller.store.columns import count, metadata, number, text

mlflow_import = Table(  # operations that imported a version, "press/3"
    "mlflow_import",
    metadata,
    Column("operation", String(64), primary_key=True),
    Column("name", String(300), nullable=False),
    Index("ix_mlflow_import_name", "name"),
)
mlflow_run = Table(  # runs of Shoal -> their copies in MLflow; due_at: 0 when nothing is to be sent
    "mlflow_run",
    metadata,
    Column("run", String(64), primary_key=True),
    text("remote"),
    number("due_at"),
    number("sent_at"),
    count("attempts"),
    text("error"),
    Index("ix_mlflow_run_due", "due_at"),
)
mlflow_follow = Table(  # rules: an alias, and what a version that it moves to starts
    "mlflow_follow",
    metadata,
    Column("name", String(300), primary_key=True),  # "press@champion"
    text("model"),
    Column("rule", JSON, nullable=False),  # fields of mlflow.records.Rule
    number("created_at"),
    text("created_by"),
    text("version"),  # that the alias names now
    number("checked_at"),
    text("error"),
)
mlflow_version = Table(  # versions that a followed alias has named, each dealt with once
    "mlflow_version",
    metadata,
    Column("follow", String(300), primary_key=True),
    Column("version", Integer, primary_key=True),
    text("state"),
    text("operation"),
    text("release"),
    text("rollout"),
    text("reason"),
    number("seen_at"),
    number("ended_at"),
    text("tags"),  # JSON of the tags that MLflow is to have
    text("written"),  # those that it has, "" for none
    Index("ix_mlflow_version_open", "ended_at"),
)
