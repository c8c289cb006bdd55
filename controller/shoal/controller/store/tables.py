"""Tables of the controller's database, for SQLAlchemy Core on SQLite; one section per domain.

Times are Unix seconds (Float). JSON columns hold msgspec builtins. Columns have the names of the
records' fields.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
)

from shoal.controller.store.columns import count, metadata, number, text

# --- access -----------------------------------------------------------------------------------

user = Table(  # password_expires_at: of a one-time password, 0 for one that the user chose
    "user",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("password_hash", Text, nullable=False),
    Column("role", String(16), nullable=False),
    number("created_at"),
    number("disabled_at"),
    number("password_expires_at"),
)
session = Table(  # id_hash: SHA-256 of the cookie; the cookie itself is never stored
    "session",
    metadata,
    Column("id_hash", String(64), primary_key=True),
    Column("user", ForeignKey("user.name"), nullable=False),
    number("created_at"),
    number("expires_at"),
    number("seen_at"),
    text("address"),
    text("agent"),
)
api_token = Table(
    "api_token",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("secret_hash", String(64), nullable=False),
    Column("name", Text, nullable=False),
    Column("user", ForeignKey("user.name"), nullable=False),
    Column("role", String(16), nullable=False),
    number("created_at"),
    number("expires_at"),
    number("last_used_at"),
    Column("models", JSON, nullable=False, server_default="[]"),
    Column("sites", JSON, nullable=False, server_default="[]"),
)
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    number("at"),
    text("actor"),
    text("verb"),
    text("subject"),
    Column("detail", JSON, nullable=False),
    text("hash"),
    text("address"),
    Index("ix_audit_actor", "actor", "id"),
    Index("ix_audit_verb", "verb", "id"),
    Index("ix_audit_subject", "subject", "id"),
)
idempotency = Table(  # response to a POST with an Idempotency-Key; status 0: in progress
    "idempotency",
    metadata,
    Column("key", String(64), primary_key=True),  # SHA-256 of actor, route and key
    Column("body_hash", String(64), nullable=False),
    count("status"),
    text("location"),
    Column("body", LargeBinary, nullable=False),
    number("created_at"),
    Index("ix_idempotency_created", "created_at"),
)
setting = Table(  # one JSON value per name
    "setting",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", JSON, nullable=False),
)

# --- fleet ----------------------------------------------------------------------------------

join_token = Table(
    "join_token",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("secret_hash", String(64), nullable=False),
    text("site"),
    Column("rings", JSON, nullable=False),
    count("uses_left"),
    number("created_at"),
    number("expires_at"),
)
device = Table(
    "device",
    metadata,
    Column("name", String(63), primary_key=True),
    text("site"),
    text("line"),
    Column("labels", JSON, nullable=False),
    text("ring"),
    text("profile"),
    text("state"),
    Column("online", Boolean, nullable=False, server_default="0"),
    text("session"),
    number("enrolled_at"),
    number("seen_at"),
    text("certificate_serial"),
    number("certificate_expires_at"),
    text("key_sha256"),
    count("generation"),
    text("agent"),
    text("endpoint"),
    Column("releases", JSON, nullable=False),
    Column("variants", JSON, nullable=False),
    Column("facts", JSON, nullable=False),
    text("error"),
    number("error_at"),
    number("clock_skew_s"),
    number("clock_error_s", -1),
    Index("ix_device_site", "site", "name"),
    Index("ix_device_seen", "seen_at"),
    Index("ix_device_enrolled", "enrolled_at"),
    Index("ix_device_certificate", "certificate_expires_at"),
)
device_event = Table(
    "device_event",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("boot", String(32), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    number("at"),
    number("received_at"),
    text("kind"),
    text("state"),
    text("cause"),
    text("detail"),
    text("model"),
    text("release"),
    text("rollout"),
    count("attempt"),
    Column("facts", JSON, nullable=False),
    Index("ix_device_event_at", "device", "at"),
    Index("ix_device_event_received", "received_at"),
)

# --- data, models, releases -------------------------------------------------------------------

dataset = Table(
    "dataset",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sha256", String(64), nullable=False),
    count("size"),
    count("rows"),
    Column("columns", JSON, nullable=False),
    text("label"),
    text("site"),
    text("split"),
    Column("parents", JSON, nullable=False),
    text("how"),
    Column("sites", JSON, nullable=False),
    number("created_at"),
    text("created_by"),
    Column("kind", Text, nullable=False, server_default="table"),
    Column("contents", JSON(none_as_null=True), nullable=True),
    Column("csv", JSON(none_as_null=True), nullable=True),
    Column("left_out", JSON, server_default="[]", nullable=False),
    count("duplicates"),
    text("content_sha256"),
    Column("report", JSON(none_as_null=True), nullable=True),
    Column("masking", JSON(none_as_null=True), nullable=True),
    number("erased_at"),
)
operation = Table(
    "operation",
    metadata,
    Column("id", String(32), primary_key=True),
    text("kind"),
    text("state"),
    number("progress"),
    text("step"),
    text("subject"),
    number("created_at"),
    text("created_by"),
    number("started_at"),
    number("finished_at"),
    Column("params", JSON, nullable=False),
    Column("result", JSON, nullable=False),
    text("error"),
    number("limit_s"),
    text("canceled_by"),
    Index("ix_operation_state", "state"),
    Index("ix_operation_created", "created_at", "id"),
    Index("ix_operation_subject", "subject", "created_at", "id"),
)
model = Table(
    "model",
    metadata,
    Column("name", String(63), primary_key=True),
    number("created_at"),
    Column("retrain_on_drift", Boolean, nullable=False, server_default="0"),
    text("dataset"),
    text("task"),
    Column("rounds", Integer, nullable=False, server_default="10"),
    Column("cooldown_s", Float, nullable=False, server_default="86400"),
    number("asked_at"),  # when drift last asked for rounds
    number("retired_at"),
    text("retired_by"),
)
release = Table(
    "release",
    metadata,
    Column("model", ForeignKey("model.name"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    text("state"),
    text("dataset"),
    text("dataset_sha256"),
    text("operation"),
    text("trigger"),
    text("parent"),
    text("override"),
    number("created_at"),
    text("created_by"),
    Column("report", JSON, nullable=False),  # fields of records.Release beyond these columns
    Column("manifest", LargeBinary, nullable=False),
    Column("references", LargeBinary, nullable=False),
    number("retired_at"),
    text("retired_by"),
    Index("ix_release_operation", "operation"),
    Index("ix_release_dataset", "dataset"),
    Index("ix_release_trigger", "trigger"),
)
revocation = Table(  # epoch: 0 until metadata says it; cursor: see rollouts.release_revocation
    "revocation",
    metadata,
    Column("model", String(63), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    count("epoch"),
    number("at"),
    text("by"),
    text("reason"),
    text("cursor"),
)

used_version = Table(  # highest version of a model or dataset that something deleted has used
    "used_version",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", String(63), primary_key=True),
    count("version"),
)
unused_file = Table(  # blobs of deleted things; written_at: the file's time when it was left
    "unused_file", metadata, Column("sha256", String(64), primary_key=True),
    number("written_at"), number("at"),
)  # fmt: skip

# --- monitoring -------------------------------------------------------------------------------

alert = Table(
    "alert",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    text("key"),
    text("kind"),
    text("severity"),
    text("state"),
    text("title"),
    text("detail"),
    text("next_step"),
    text("site"),
    text("model"),
    text("release"),
    Column("features", JSON, nullable=False),
    count("findings"),
    number("opened_at"),
    number("updated_at"),
    text("acknowledged_by"),
    number("closed_at"),
    text("assigned_to"),
    count("members"),
    count("reopened"),
    number("snoozed_until"),
    text("silence"),
    number("escalated_at"),
    number("ending_at"),  # its cause is gone; it closes then, unless it returns before
    number("due_at"),  # when alerts.upkeep looks at it next: a snooze ends, it escalates; 0: never
    Index("ix_alert_key", "key", "state"),
    Index("ix_alert_state", "state", "severity", "kind"),
    Index("ix_alert_opened", "opened_at", "id"),
    Index("ix_alert_release", "release"),
)
Index("ix_alert_due", alert.c.due_at, sqlite_where=alert.c.due_at > 0)
change = Table(  # change log, read by the console's event stream
    "change",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    number("at"),
    text("kind"),
    text("subject"),
)

# --- federated learning -----------------------------------------------------------------------

federated_task = Table(
    "federated_task",
    metadata,
    Column("name", String(63), primary_key=True),
    text("model"),
    text("release"),
    text("state"),
    text("reason"),
    Column("plan", JSON, nullable=False),
    Column("prepared", JSON, nullable=False),
    text("operation"),
    number("created_at"),
    text("created_by"),
    count("rounds"),
    count("asked"),
    text("checkpoint"),
    text("memory"),
    count("parent"),
    Column("spent", JSON, nullable=False),  # of shoal.controller.federated.privacy.accountant.Spent
    number("epsilon"),
    number("next_at"),  # no round is begun before
)
federated_round = Table(  # one try; journal: shoal.controller.federated.rounds.machine.Round
    "federated_round",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("task", ForeignKey("federated_task.name"), nullable=False),
    count("number"),
    count("attempt"),
    text("state"),
    text("reason"),
    Column("journal", JSON, nullable=False),
    Column("plan", JSON, nullable=False),  # shoal.federated.plan.Plan
    count("parent"),
    text("theta"),
    text("old_memory"),
    text("checkpoint"),
    text("memory"),
    Column("result", JSON, nullable=False),  # fields of records.Round beyond these columns
    number("started_at"),
    number("ended_at"),
    text("poisoned"),
    text("charge"),
    number("pruned_at"),
    Index("ix_federated_round_task", "task", "number", "attempt"),
    Index("ix_federated_round_state", "state"),
)
participation = Table(
    "participation",
    metadata,
    Column("round", ForeignKey("federated_round.id"), primary_key=True),
    Column("device", String(63), primary_key=True),
    text("site"),
    text("task"),
    count("number"),
    text("mark"),
    text("reason"),
    count("examples"),
    Column("loss", Float),
    Column("norm", Float),
    Column("cosine", Float),
    text("suspect"),
    number("seconds"),
    count("bytes"),
    Column("chosen", Boolean, nullable=False, server_default="0"),
    Index("ix_participation_device", "task", "device", "number"),
)
