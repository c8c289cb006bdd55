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
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _number(name: str, default: float = 0) -> Column[float]:
    return Column(name, Float, nullable=False, server_default=str(default))


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def _count(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default="0")


# --- access -----------------------------------------------------------------------------------

user = Table(
    "user",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("password_hash", Text, nullable=False),
    Column("role", String(16), nullable=False),
    _number("created_at"),
)
session = Table(  # id_hash: SHA-256 of the cookie; the cookie itself is never stored
    "session",
    metadata,
    Column("id_hash", String(64), primary_key=True),
    Column("user", ForeignKey("user.name"), nullable=False),
    _number("created_at"),
    _number("expires_at"),
    _number("seen_at"),
)
api_token = Table(
    "api_token",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("secret_hash", String(64), nullable=False),
    Column("name", Text, nullable=False),
    Column("user", ForeignKey("user.name"), nullable=False),
    Column("role", String(16), nullable=False),
    _number("created_at"),
    _number("expires_at"),
    _number("last_used_at"),
)
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _number("at"),
    _text("actor"),
    _text("verb"),
    _text("subject"),
    Column("detail", JSON, nullable=False),
    _text("hash"),
)
idempotency = Table(  # response to a POST with an Idempotency-Key; status 0: in progress
    "idempotency",
    metadata,
    Column("key", String(64), primary_key=True),  # SHA-256 of actor, route and key
    Column("body_hash", String(64), nullable=False),
    _count("status"),
    _text("location"),
    Column("body", LargeBinary, nullable=False),
    _number("created_at"),
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
    _text("site"),
    Column("rings", JSON, nullable=False),
    _count("uses_left"),
    _number("created_at"),
    _number("expires_at"),
)
device = Table(
    "device",
    metadata,
    Column("name", String(63), primary_key=True),
    _text("site"),
    _text("line"),
    Column("labels", JSON, nullable=False),
    _text("ring"),
    _text("profile"),
    _text("state"),
    Column("online", Boolean, nullable=False, server_default="0"),
    _text("session"),
    _number("enrolled_at"),
    _number("seen_at"),
    _text("certificate_serial"),
    _number("certificate_expires_at"),
    _text("key_sha256"),
    _count("generation"),
    _text("agent"),
    _text("endpoint"),
    Column("releases", JSON, nullable=False),
    Column("variants", JSON, nullable=False),
    Column("facts", JSON, nullable=False),
    _text("error"),
    _number("error_at"),
    _number("clock_skew_s"),
    _number("clock_error_s", -1),
    Index("ix_device_site", "site", "name"),
    Index("ix_device_seen", "seen_at"),
)
device_event = Table(
    "device_event",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("boot", String(32), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _number("at"),
    _number("received_at"),
    _text("kind"),
    _text("state"),
    _text("cause"),
    _text("detail"),
    _text("model"),
    _text("release"),
    _text("rollout"),
    _count("attempt"),
    Column("facts", JSON, nullable=False),
    Index("ix_device_event_at", "device", "at"),
)
window = Table(  # inputs, outputs: Sketch bytes as received, by the release's reference
    "window",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("boot", String(32), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _text("site"),
    _text("model"),
    _text("release"),
    _text("reference"),
    _number("start_at"),
    _number("window_s"),
    _number("received_at"),
    _count("rows"),
    _count("errors"),
    _count("slow"),
    _count("labelled"),
    _count("correct"),
    Column("merged", Integer, nullable=False, server_default="1"),
    Column("latency", JSON, nullable=False),
    Column("health", JSON, nullable=False),
    Column("inputs", LargeBinary, nullable=False),
    Column("outputs", LargeBinary, nullable=False),
    Index("ix_window_device_start", "device", "model", "start_at"),
    Index("ix_window_site_start", "site", "model", "start_at"),
    Index("ix_window_start", "start_at"),
    Index("ix_window_received", "received_at"),
)

# --- data, models, releases -------------------------------------------------------------------

dataset = Table(
    "dataset",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sha256", String(64), nullable=False),
    _count("size"),
    _count("rows"),
    Column("columns", JSON, nullable=False),
    _text("label"),
    _text("site"),
    _text("split"),
    Column("parents", JSON, nullable=False),
    _text("how"),
    Column("sites", JSON, nullable=False),
    _number("created_at"),
    _text("created_by"),
    Column("kind", Text, nullable=False, server_default="table"),
    Column("contents", JSON(none_as_null=True), nullable=True),
)
operation = Table(
    "operation",
    metadata,
    Column("id", String(32), primary_key=True),
    _text("kind"),
    _text("state"),
    _number("progress"),
    _text("step"),
    _text("subject"),
    _number("created_at"),
    _text("created_by"),
    _number("started_at"),
    _number("finished_at"),
    Column("params", JSON, nullable=False),
    Column("result", JSON, nullable=False),
    _text("error"),
    _number("limit_s"),
    _text("canceled_by"),
    Index("ix_operation_state", "state"),
)
model = Table(
    "model",
    metadata,
    Column("name", String(63), primary_key=True),
    _number("created_at"),
    Column("retrain_on_drift", Boolean, nullable=False, server_default="0"),
    _text("dataset"),
    _text("task"),
    Column("rounds", Integer, nullable=False, server_default="10"),
    Column("cooldown_s", Float, nullable=False, server_default="86400"),
    _number("asked_at"),  # when drift last asked for rounds
    _number("retired_at"),
    _text("retired_by"),
)
release = Table(
    "release",
    metadata,
    Column("model", ForeignKey("model.name"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    _text("state"),
    _text("dataset"),
    _text("dataset_sha256"),
    _text("operation"),
    _text("trigger"),
    _text("parent"),
    _text("override"),
    _number("created_at"),
    _text("created_by"),
    Column("report", JSON, nullable=False),  # fields of records.Release beyond these columns
    Column("manifest", LargeBinary, nullable=False),
    Column("references", LargeBinary, nullable=False),
    _number("retired_at"),
    _text("retired_by"),
)

used_version = Table(  # highest version of a model or dataset that something deleted has used
    "used_version",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", String(63), primary_key=True),
    _count("version"),
)
unused_file = Table(  # blobs of deleted things; written_at: the file's time when it was left
    "unused_file", metadata, Column("sha256", String(64), primary_key=True),
    _number("written_at"), _number("at"),
)  # fmt: skip

# --- rollouts ---------------------------------------------------------------------------------

rollout = Table(
    "rollout",
    metadata,
    Column("id", String(16), primary_key=True),
    _text("release"),
    _text("model"),
    Column("plan", JSON, nullable=False),
    _text("state"),
    _text("reason"),
    Column("stages", JSON, nullable=False),
    _number("created_at"),
    _text("created_by"),
    _number("finished_at"),
    Index("ix_rollout_state", "state"),
)
rollout_device = Table(
    "rollout_device",
    metadata,
    Column("rollout", ForeignKey("rollout.id"), primary_key=True),
    Column("device", String(63), primary_key=True),
    _text("stage"),
    _text("state"),
    _count("attempt"),
    _text("cause"),
    _text("detail"),
    _text("previous"),
    _number("updated_at"),
    Column("facts", JSON, nullable=False),
    Index("ix_rollout_device_device", "device"),
)
assignment = Table(  # desired state of a device; published when sent_version < version
    "assignment",
    metadata,
    Column("device", String(63), primary_key=True),
    _count("version"),
    _count("sent_version"),
    Column("orders", JSON, nullable=False),  # model -> shoal.trust.Order builtins
    Column("message", LargeBinary, nullable=False),
    _number("signed_at"),
    _number("expires_at"),
)

undeployment = Table(  # select, named: which devices; cursor: the last one that was looked at
    "undeployment",
    metadata,
    Column("id", String(16), primary_key=True),
    _text("model"),
    Column("select", JSON, nullable=False),
    Column("named", JSON, nullable=False),
    _text("state"),
    _text("reason"),
    _text("cursor"),
    _number("created_at"),
    _text("created_by"),
    _number("finished_at"),
    Index("ix_undeployment_state", "state"),
)
undeployment_device = Table(
    "undeployment_device",
    metadata,
    Column("undeployment", ForeignKey("undeployment.id"), primary_key=True),
    Column("device", String(63), primary_key=True),
    _text("state"),
    _count("attempt"),
    _text("detail"),
    _number("updated_at"),
    Index("ix_undeployment_device_state", "undeployment", "state"),
)

# --- monitoring -------------------------------------------------------------------------------

baseline = Table(  # of one subject and release; state: monitoring.drift.Baseline
    "baseline",
    metadata,
    Column("scope", String(8), primary_key=True),
    Column("subject", String(63), primary_key=True),
    Column("model", String(63), primary_key=True),
    Column("release", String(80), primary_key=True),
    _count("windows"),
    _number("until_at"),
    Column("state", LargeBinary, nullable=False),
)
finding = Table(
    "finding",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _number("at"),
    _text("kind"),
    _text("scope"),
    _text("subject"),
    _text("model"),
    _text("release"),
    _text("feature"),
    _count("scale"),
    _number("log10_p"),
    _number("log10_alpha"),
    _number("hellinger"),
    _number("psi"),
    _count("rows"),
    UniqueConstraint("kind", "scope", "subject", "model", "release", "feature", "scale", "at"),
    Index("ix_finding_at", "at"),
)
drift_point = Table(  # heatmap column: one row per subject and window, alarmed or not
    "drift_point",
    metadata,
    Column("scope", String(8), primary_key=True),
    Column("subject", String(63), primary_key=True),
    Column("model", String(63), primary_key=True),
    Column("at", Float, primary_key=True),
    _text("release"),
    Column("log10_p", LargeBinary, nullable=False),
    Column("psi", LargeBinary, nullable=False),
    Column("alarmed", LargeBinary, nullable=False),  # float32, float32, uint8, each (features,)
)
alert = Table(
    "alert",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _text("key"),
    _text("kind"),
    _text("severity"),
    _text("state"),
    _text("title"),
    _text("detail"),
    _text("next_step"),
    _text("site"),
    _text("model"),
    _text("release"),
    Column("features", JSON, nullable=False),
    _count("findings"),
    _number("opened_at"),
    _number("updated_at"),
    _text("acknowledged_by"),
    _number("closed_at"),
    Index("ix_alert_key", "key", "state"),
)
change = Table(  # change log, read by the console's event stream
    "change",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _number("at"),
    _text("kind"),
    _text("subject"),
)

# --- federated learning -----------------------------------------------------------------------

federated_task = Table(
    "federated_task",
    metadata,
    Column("name", String(63), primary_key=True),
    _text("model"),
    _text("release"),
    _text("state"),
    _text("reason"),
    Column("plan", JSON, nullable=False),
    Column("prepared", JSON, nullable=False),
    _text("operation"),
    _number("created_at"),
    _text("created_by"),
    _count("rounds"),
    _count("asked"),
    _text("checkpoint"),
    _text("memory"),
    _count("parent"),
    Column("spent", JSON, nullable=False),  # of shoal.controller.federated.privacy.accountant.Spent
    _number("epsilon"),
    _number("next_at"),  # no round is begun before
)
federated_round = Table(  # one try; journal: shoal.controller.federated.rounds.machine.Round
    "federated_round",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("task", ForeignKey("federated_task.name"), nullable=False),
    _count("number"),
    _count("attempt"),
    _text("state"),
    _text("reason"),
    Column("journal", JSON, nullable=False),
    Column("plan", JSON, nullable=False),  # shoal.federated.plan.Plan
    _count("parent"),
    _text("theta"),
    _text("old_memory"),
    _text("checkpoint"),
    _text("memory"),
    Column("result", JSON, nullable=False),  # fields of records.Round beyond these columns
    _number("started_at"),
    _number("ended_at"),
    _text("poisoned"),
    _text("charge"),
    _number("pruned_at"),
    Index("ix_federated_round_task", "task", "number", "attempt"),
    Index("ix_federated_round_state", "state"),
)
participation = Table(
    "participation",
    metadata,
    Column("round", ForeignKey("federated_round.id"), primary_key=True),
    Column("device", String(63), primary_key=True),
    _text("site"),
    _text("task"),
    _count("number"),
    _text("mark"),
    _text("reason"),
    _count("examples"),
    Column("loss", Float),
    Column("norm", Float),
    Column("cosine", Float),
    _text("suspect"),
    _number("seconds"),
    _count("bytes"),
    Column("chosen", Boolean, nullable=False, server_default="0"),
    Index("ix_participation_device", "task", "device", "number"),
)
